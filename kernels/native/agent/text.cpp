#include "text.h"

#include <cerrno>
#include <cstdio>
#include <cstring>

void fail(const std::string& sentence) { throw Failure(sentence); }

std::string read_file(const std::string& path, bool* found) {
  std::string text;
  std::FILE* file = std::fopen(path.c_str(), "rb");
  *found = file != nullptr;
  if (file == nullptr) return text;
  char block[1 << 16];
  for (size_t n; (n = std::fread(block, 1, sizeof(block), file)) > 0;) text.append(block, n);
  std::fclose(file);
  return text;
}

std::string read_file(const std::string& path) {
  bool found = false;
  std::string text = read_file(path, &found);
  if (!found) fail("cannot read " + path + ": " + std::strerror(errno));
  return text;
}

std::string first_line(const std::string& path) {
  bool found = false;
  const std::string text = read_file(path, &found);
  return text.substr(0, text.find_first_of(std::string("\n\0", 2)));
}

std::vector<std::string> split(const std::string& line, char separator) {
  std::vector<std::string> parts;
  size_t start = 0;
  for (size_t at; (at = line.find(separator, start)) != std::string::npos; start = at + 1)
    parts.push_back(line.substr(start, at - start));
  parts.push_back(line.substr(start));
  return parts;
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto code = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (code < 0x20 || code > 0x7e) {  // what is not ASCII is taken for Latin-1: /sys may hold anything
      char escape[8];
      std::snprintf(escape, sizeof(escape), "\\u%04x", code);
      out += escape;
    } else {
      out += c;
    }
  }
  return out + '"';
}

std::string number(double value) {
  char text[64];
  std::snprintf(text, sizeof(text), "%.6g", value);
  return text;
}

std::string numbers(const std::vector<double>& values) {
  std::string out = "[";
  for (size_t i = 0; i < values.size(); ++i) out += (i ? "," : "") + number(values[i]);
  return out + "]";
}
