// A small persistent thread pool. Not OpenMP: torch brings its own copy of libgomp, and two of them
// in one process fight over the cores.
#pragma once

#include <cstdint>
#include <functional>

namespace pycodec {

// Calls body(0) ... body(count - 1), each once, in any order, on at most `threads` threads, of
// which the caller is one. Returns when all calls have returned; the first exception is thrown
// again here. Calls may be nested and may come from several threads at once.
void parallel_for(std::int64_t count, int threads, const std::function<void(std::int64_t)>& body);

}  // namespace pycodec
