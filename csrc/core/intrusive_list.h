// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Doubly linked lists through the members `next` and `previous` of their nodes.
///
/// Why: what is done under the engine's mutex after a point of no return may not fail, and a node that carries its own
/// links is added without an allocation.
///
/// Ownership: a list owns nothing. A node is on one list at most. Threads: guarded by whatever guards the list.

namespace torchcow {

/// Puts `node` in front of the list that begins with `first`.
template <typename Node>
void push_front(Node*& first, Node& node) noexcept {
  node.previous = nullptr;
  node.next = first;
  if (first != nullptr) first->previous = &node;
  first = &node;
}

/// Takes `node` off the list that begins with `first`.
template <typename Node>
void remove_from(Node*& first, Node& node) noexcept {
  (node.previous != nullptr ? node.previous->next : first) = node.next;
  if (node.next != nullptr) node.next->previous = node.previous;
  node.next = node.previous = nullptr;
}

}  // namespace torchcow
