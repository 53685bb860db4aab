// Stands in for Gloo's header, which torch's wheel leaves out: see ../context.h.
#pragma once

namespace gloo::transport {
class Device;
class UnboundBuffer;
} // namespace gloo::transport
