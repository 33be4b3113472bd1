// What was measured so far, one JSON object a line, each with a hash over itself and all before it.
//
// A line is on the disk before the next measurement begins. A line that a kill or a full disk cut short is dropped when
// the agent starts again; everything before it counts.
#ifndef HWPRUNE_AGENT_JOURNAL_H
#define HWPRUNE_AGENT_JOURNAL_H

#include <string>
#include <vector>

class Journal {
 public:
  // Opens or makes the file at `path` for the job whose hash is `seed`. One process at a time: fails if another has it.
  Journal(const std::string& path, const std::string& seed);
  ~Journal();
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;

  // Lines as they stand in the file, and without their hashes.
  const std::vector<std::string>& lines() const { return lines_; }
  const std::vector<std::string>& bodies() const { return bodies_; }

  // Adds a JSON object. Fails, and leaves the file as it was, if it cannot be written.
  void append(const std::string& body);

 private:
  size_t take_over(const std::string& text);
  void keep(const std::string& body, const std::string& line);

  std::string path_, hash_;
  int file_;
  size_t size_ = 0;
  std::vector<std::string> lines_, bodies_;
};

// Writes a file whole or not at all; fails with a sentence.
void write_whole(const std::string& path, const std::string& text);

#endif
