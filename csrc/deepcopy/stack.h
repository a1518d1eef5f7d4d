#pragma once

/// The C stack. Python's recursion limit counts calls, not bytes; with a high limit, or in a thread with a small
/// stack, user code that calls deepcopy again and again would run off its end and kill the process.

namespace torchcow {

/// Raises RecursionError where little is left of this thread's stack.
void check_stack();

}  // namespace torchcow
