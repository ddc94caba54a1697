#pragma once
#include <cstddef>

namespace fastft::cpu {

// Asks for huge pages under [data, data + bytes): a fresh buffer of logits or gradients is otherwise paid
// for in 4 KiB page faults, several times the cost of writing it. A hint: false where it has no effect.
bool advise_huge_pages(void* data, size_t bytes);

}  // namespace fastft::cpu
