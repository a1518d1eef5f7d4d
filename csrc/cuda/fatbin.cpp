// SPDX-License-Identifier: Apache-2.0

// The compiled kernels.cu, as bytes in this library. The build gives TORCHCOW_FATBIN_PATH.

__asm__(
    ".pushsection .rodata, \"a\", @progbits\n"
    ".balign 64\n"
    ".global torchcow_cuda_fatbin\n"
    ".hidden torchcow_cuda_fatbin\n"
    ".type torchcow_cuda_fatbin, @object\n"
    "torchcow_cuda_fatbin:\n"
    ".incbin \"" TORCHCOW_FATBIN_PATH
    "\"\n"
    ".byte 0\n"
    ".size torchcow_cuda_fatbin, . - torchcow_cuda_fatbin\n"
    ".popsection\n");
