// Memory for kernels. It begins with a page (hwprune/library.py: aligned), and if it is large it is in large pages where the
// system gives them to programs that ask: constants that are streamed through take up to half as long again in small ones.
// numpy, whose memory the Python runtime and the measuring process work on, does the same from the same size on; so a
// kernel takes equally long whoever runs it.
#ifndef HWPRUNE_PAGES_H
#define HWPRUNE_PAGES_H

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>

constexpr size_t kPage = 4096;

inline void ask_for_large_pages(void* memory, size_t bytes) {
  constexpr size_t kLeast = size_t{1} << 22;
  if (bytes < kLeast) return;
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE)), start = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t first = (start + page - 1) / page * page;
  madvise(reinterpret_cast<void*>(first), bytes - (first - start), MADV_HUGEPAGE);  // where it is refused, nothing is lost
}

// Whole pages that hold `bytes`.
inline size_t whole_pages(size_t bytes) {
  return bytes == 0 ? kPage : (bytes + kPage - 1) / kPage * kPage;
}

// `bytes` of memory, whole pages; nullptr if there is no more. std::free gives it back.
inline char* pages(size_t bytes) {
  void* memory = std::aligned_alloc(kPage, bytes);
  if (memory != nullptr) ask_for_large_pages(memory, bytes);
  return static_cast<char*>(memory);
}

#endif
