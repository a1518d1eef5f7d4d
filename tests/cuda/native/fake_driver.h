// SPDX-License-Identifier: Apache-2.0
#pragma once

// A stand-in for libcuda.so.1 that runs kernels.cu on the processor, so that the path from `DeviceKernels` down to the
// last byte of a kernel is tested without a device. Its 'device memory' is ordinary memory, its streams run at once.
//
// It carries the real library's soname: linked into a test, it is what dlopen finds. The knobs below set what the next
// calls do; they are process-wide and belong to one test at a time.

extern "C" {

/// The error that loading a module returns; 0 loads it.
extern int fake_driver_load_error;
/// The error that a launch returns; 0 runs it.
extern int fake_driver_launch_error;
/// What asking for the capture status of a stream returns, and the status itself.
extern int fake_driver_capture_error;
extern int fake_driver_capture_status;
/// How often kernels were launched, and how often memory was copied from device to device without one.
extern int fake_driver_launches;
extern int fake_driver_copies;
/// Contexts that were pushed and not popped.
extern int fake_driver_pushed;
}
