# SPDX-License-Identifier: Apache-2.0

# The torch that is installed in the interpreter that builds us, as the target torchcow_torch.
#
# torch's own CMake package is not used: with a CUDA build of torch it demands the CUDA toolkit. The core
# needs three libraries of torch and no CUDA header, so one build serves CPU and CUDA builds.

execute_process(
  COMMAND ${Python_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/torch_release.py
  OUTPUT_VARIABLE torch_facts ERROR_VARIABLE torch_error RESULT_VARIABLE torch_failed)
if(torch_failed)
  message(FATAL_ERROR "${torch_error}")
endif()
list(GET torch_facts 0 torch_dir)
list(GET torch_facts 1 TORCHCOW_TORCH_VERSION)
list(GET torch_facts 2 torch_cxx11_abi)
message(STATUS "torchcow: building against torch ${TORCHCOW_TORCH_VERSION} in ${torch_dir}")

add_library(torchcow_torch INTERFACE)
target_include_directories(torchcow_torch SYSTEM INTERFACE
  ${torch_dir}/include ${torch_dir}/include/torch/csrc/api/include)
target_compile_definitions(torchcow_torch INTERFACE
  _GLIBCXX_USE_CXX11_ABI=${torch_cxx11_abi}
  TORCHCOW_TORCH_VERSION="${TORCHCOW_TORCH_VERSION}"
  # StorageImpl::set_materializer and c10::Stream::is_capturing came together.
  TORCHCOW_TORCH_HAS_MATERIALIZER=$<VERSION_GREATER_EQUAL:${TORCHCOW_TORCH_VERSION},2.13>)
target_link_directories(torchcow_torch INTERFACE ${torch_dir}/lib)
target_link_libraries(torchcow_torch INTERFACE c10 torch_cpu)
