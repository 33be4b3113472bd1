// Small things that every part of the agent needs: failing with a sentence, reading files, writing JSON.
#ifndef HWPRUNE_AGENT_TEXT_H
#define HWPRUNE_AGENT_TEXT_H

#include <stdexcept>
#include <string>
#include <vector>

// Ends the agent with one sentence for the user.
struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};
[[noreturn]] void fail(const std::string& sentence);

// The whole file; `found` tells apart what is empty and what is not there.
std::string read_file(const std::string& path, bool* found);
std::string read_file(const std::string& path);  // fails if it is not there
// First line of a file under /sys or /proc, without its end; empty if there is none.
std::string first_line(const std::string& path);

std::vector<std::string> split(const std::string& line, char separator);

std::string quoted(const std::string& text);             // as a JSON string
std::string numbers(const std::vector<double>& values);  // as a JSON list
std::string number(double value);

#endif
