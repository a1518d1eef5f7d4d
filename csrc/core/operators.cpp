// SPDX-License-Identifier: Apache-2.0

#include "operators.h"

#include "write_hook.h"

#include <algorithm>
#include <string_view>
#include <unordered_map>
#include <unordered_set>

namespace torchcow {

namespace {

using Names = std::unordered_set<std::string_view>;

/// Operators that write arguments which their schemas do not mark, by argument name.
const std::unordered_map<std::string_view, std::vector<std::string_view>>& unmarked_writers() {
  static const std::unordered_map<std::string_view, std::vector<std::string_view>> table = {
      {"aten::native_batch_norm", {"running_mean", "running_var"}},
      {"aten::cudnn_batch_norm", {"running_mean", "running_var"}},
      {"aten::miopen_batch_norm", {"running_mean", "running_var"}},
      {"aten::batch_norm_gather_stats", {"running_mean", "running_var"}},
      {"aten::batch_norm_gather_stats_with_counts", {"running_mean", "running_var"}},
      {"aten::batch_norm_update_stats", {"running_mean", "running_var"}},
      {"aten::_cudnn_rnn_flatten_weight", {"weight_arr"}},
      {"aten::miopen_rnn", {"weight"}},
      {"aten::fused_moving_avg_obs_fake_quant", {"running_min", "running_max", "scale", "zero_point"}},
      {"aten::_lazy_clone", {"self"}},  // makes torch's own copy-on-write storage of it
  };
  return table;
}

const Names& metadata_writers() {
  static const Names names = {"aten::set_",
                              "aten::set",
                              "aten::set_data",
                              "aten::detach_",
                              "aten::requires_grad_",
                              "aten::retain_grad",
                              "aten::t_",
                              "aten::transpose_",
                              "aten::swapaxes_",
                              "aten::swapdims_",
                              "aten::squeeze_",
                              "aten::unsqueeze_",
                              "aten::as_strided_",
                              "aten::rename_",
                              "aten::_coalesced_",
                              "aten::sparse_resize_",
                              "aten::sparse_resize_and_clear_",
                              "aten::moveaxis_",
                              "aten::conj_",
                              "aten::_set_conj",
                              "aten::_set_neg",
                              "aten::_resize_output_",
                              "aten::refine_names",
                              "aten::align_to"};
  return names;
}

/// In-place operators that write all of `self` and read none of it. `out=` overloads are handled apart. When one
/// raises, all is restored, so it may raise only before it writes.
const Names& overwriters() {
  static const Names names = {"aten::copy_",         "aten::fill_",       "aten::zero_",      "aten::uniform_",
                              "aten::normal_",       "aten::random_",     "aten::bernoulli_", "aten::exponential_",
                              "aten::cauchy_",       "aten::log_normal_", "aten::geometric_", "aten::_foreach_copy_",
                              "aten::_foreach_zero_"};
  return names;
}

/// Operators whose `out=` forms do. `addmm` and `baddbmm` do not: they copy their input, and raise after that.
const Names& out_overwriters() {
  static const Names names = {
      "aten::abs",  "aten::add",   "aten::bmm",    "aten::cat",        "aten::clamp", "aten::cos",     "aten::div",
      "aten::exp",  "aten::log",   "aten::matmul", "aten::maximum",    "aten::mean",  "aten::minimum", "aten::mm",
      "aten::mul",  "aten::neg",   "aten::pow",    "aten::reciprocal", "aten::rsqrt", "aten::sigmoid", "aten::sin",
      "aten::sqrt", "aten::stack", "aten::sub",    "aten::sum",        "aten::tanh",  "aten::where"};
  return names;
}

/// Overloads that can meet a value half-way for which they raise: a wrong probability, a zero among integers.
const Names& stopping_overloads() {
  static const Names names = {"aten::bernoulli_.Tensor", "aten::div.out_mode", "aten::div.Scalar_mode_out"};
  return names;
}

/// Operators that take mutable pointers only to read.
const std::unordered_map<std::string_view, std::vector<std::string_view>>& raw_readers() {
  static const std::unordered_map<std::string_view, std::vector<std::string_view>> table = {
      {"aten::mkldnn_rnn_layer", {"input", "weight0", "weight1", "weight2", "weight3", "hx_", "cx_"}},
      {"aten::mkldnn_rnn_layer_backward", {"input", "weight1", "weight2", "weight3", "weight4", "hx_", "cx_tmp"}},
      {"aten::channel_shuffle", {"self"}},
      {"aten::native_channel_shuffle", {"self"}},
      {"aten::_scaled_dot_product_flash_attention_for_cpu", {"attn_mask"}},
  };
  return table;
}

/// The flag that says whether normalization updates its running statistics.
std::optional<std::uint32_t> training_flag(const c10::FunctionSchema& schema) {
  for (const auto* name : {"training", "train", "use_input_stats"}) {
    if (const auto index = schema.argumentIndexWithName(name)) return static_cast<std::uint32_t>(*index);
  }
  return std::nullopt;
}

bool is_written(const c10::Argument& argument, const std::string& op_name, bool collective) {
  if (argument.alias_info() != nullptr && argument.alias_info()->isWrite()) return true;
  const auto named = [&](auto& table) {
    const auto entry = table.find(op_name);
    return entry != table.end() && std::count(entry->second.begin(), entry->second.end(), argument.name()) > 0;
  };
  if (named(unmarked_writers())) return true;
  if (write_hook::racing_readers_break && named(raw_readers())) return true;
  // Collectives write in place and into output lists; c10d marks only some of them.
  return collective && argument.type()->annotation_str().find("Tensor") != std::string::npos;
}

}  // namespace

std::optional<OperatorTraits> traits_of(const c10::OperatorHandle& op) {
  if (!op.hasSchema()) return std::nullopt;
  const auto& schema = op.schema();
  const auto& name = schema.name();
  if (metadata_writers().contains(name)) return std::nullopt;
  OperatorTraits traits;
  traits.name = schema.overload_name().empty() ? name : name + "." + schema.overload_name();
  traits.argument_count = schema.arguments().size();
  const bool collective = name.starts_with("c10d::");
  bool has_out = false;
  bool only_statistics = true;
  for (std::uint32_t i = 0; i < schema.arguments().size(); ++i) {
    const auto& argument = schema.arguments()[i];
    if (!is_written(argument, name, collective)) continue;
    traits.written.push_back(i);
    only_statistics = only_statistics && argument.name().starts_with("running_");
    has_out = has_out || argument.is_out();
  }
  if (traits.written.empty()) return std::nullopt;
  if (only_statistics) traits.only_if = training_flag(schema);
  traits.overwrites =
      (has_out ? out_overwriters().contains(name) && traits.written.size() == 1 : overwriters().contains(name)) &&
      !stopping_overloads().contains(traits.name);
  traits.copies_pairs = name == "aten::_foreach_copy_";
  traits.resizes = name == "aten::resize_" || name == "aten::resize_as_";
  traits.records_stream = name == "aten::record_stream";
  return traits;
}

}  // namespace torchcow
