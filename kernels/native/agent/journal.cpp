#include "journal.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "sha256.h"
#include "text.h"

namespace {

const std::string kBefore = ",\"sha256\":\"", kAfter = "\"}";
constexpr size_t kHex = 64;

std::string with_hash(const std::string& body, const std::string& hash) {
  return body.substr(0, body.size() - 1) + kBefore + hash + kAfter;
}

// The object of a line without its hash; empty if the line is not of that form.
std::string body_of(const std::string& line) {
  const size_t tail = kBefore.size() + kHex + kAfter.size();
  if (line.size() <= tail || line.compare(line.size() - tail, kBefore.size(), kBefore) != 0) return {};
  return line.substr(0, line.size() - tail) + "}";
}

bool write_all(int file, const std::string& text) {
  for (size_t done = 0; done < text.size();) {
    const ssize_t n = write(file, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return false;
    done += static_cast<size_t>(n);
  }
  return true;
}

}  // namespace

Journal::Journal(const std::string& path, const std::string& seed)
    : path_(path), hash_(seed), file_(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644)) {
  if (file_ < 0) fail("cannot write " + path + ": " + std::strerror(errno) + "; unpack the bundle where you may write");
  if (flock(file_, LOCK_EX | LOCK_NB) != 0) {
    close(file_);
    fail("another process is measuring here (it holds " + path + "); wait for it, or end it");
  }
  const std::string text = read_file(path);
  size_ = take_over(text);
  if (size_ == text.size()) return;
  const size_t end = text.find('\n', size_);
  const bool torn = end == std::string::npos || end + 1 == text.size();  // only the last line is not whole
  if (!torn) {
    write_whole(path + ".damaged", text);
    std::fprintf(stderr,
                 "measure: %s is damaged after %zu lines, or of another job; it is kept as %s.damaged, and what is lost is "
                 "measured again\n",
                 path.c_str(), lines_.size(), path.c_str());
  }
  if (ftruncate(file_, static_cast<off_t>(size_)) != 0) fail("cannot write " + path + ": " + std::strerror(errno));
}

Journal::~Journal() { close(file_); }

// Takes the lines whose hashes are right, and returns where they end.
size_t Journal::take_over(const std::string& text) {
  size_t start = 0;
  for (size_t end; (end = text.find('\n', start)) != std::string::npos; start = end + 1) {
    const std::string line = text.substr(start, end - start), body = body_of(line);
    if (body.empty() || with_hash(body, sha256_hex(hash_ + "\n" + body)) != line) break;
    keep(body, line);
  }
  return start;
}

void Journal::keep(const std::string& body, const std::string& line) {
  hash_ = line.substr(line.size() - kAfter.size() - kHex, kHex);
  bodies_.push_back(body);
  lines_.push_back(line);
}

void Journal::append(const std::string& body) {
  const std::string line = with_hash(body, sha256_hex(hash_ + "\n" + body));
  const bool written =
      lseek(file_, static_cast<off_t>(size_), SEEK_SET) >= 0 && write_all(file_, line + "\n") && fsync(file_) == 0;
  if (!written) {
    const std::string why = std::strerror(errno);
    const bool cut = ftruncate(file_, static_cast<off_t>(size_)) == 0;
    fail("cannot write " + path_ + ": " + why + "; the " + std::to_string(lines_.size()) + " lines before are kept" +
         (cut ? "" : " and the torn one will be dropped") + ": free some space and start ./measure again");
  }
  size_ += line.size() + 1;
  keep(body, line);
}

void write_whole(const std::string& path, const std::string& text) {
  const std::string temporary = path + ".tmp";
  const int file = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  bool written = file >= 0 && write_all(file, text) && fsync(file) == 0;
  int why = errno;
  if (file >= 0 && close(file) != 0 && written) written = false, why = errno;
  if (written && std::rename(temporary.c_str(), path.c_str()) == 0) return;
  if (written) why = errno;
  unlink(temporary.c_str());
  fail("cannot write " + path + ": " + std::strerror(why) +
       "; free some space and start ./measure again: what was measured is kept");
}
