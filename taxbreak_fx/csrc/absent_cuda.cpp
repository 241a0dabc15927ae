// Stands for the CUDA device guard in a torch that was built without CUDA: fake CUDA tensors are indexed and viewed by
// C++ that asks for a guard, and only a guard, although no device is ever touched.  A CUDA build brings its own.
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace c10::impl {
C10_REGISTER_GUARD_IMPL(CUDA, NoOpDeviceGuardImpl<DeviceType::CUDA>)
}
