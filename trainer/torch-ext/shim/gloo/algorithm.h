// Stands in for Gloo's header, which torch's wheel leaves out: see context.h.
#pragma once
