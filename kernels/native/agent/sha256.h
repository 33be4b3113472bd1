// SHA-256 (FIPS 180-4).
#ifndef HWPRUNE_AGENT_SHA256_H
#define HWPRUNE_AGENT_SHA256_H

#include <string>

std::string sha256_hex(const std::string& bytes);

#endif
