// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The C stack. Python's recursion limit counts calls, not bytes. With a high limit, or in a thread with a small stack,
/// user code that calls deepcopy recursively would overflow the stack and kill the process.

namespace torchcow {

/// Raises RecursionError when little of this thread's stack is left.
void check_stack();

}  // namespace torchcow
