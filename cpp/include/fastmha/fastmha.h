// All of fastmha: attention, linear layers, row-wise operations, the largest logits, threads and instruction
// sets.
#pragma once

#include "fastmha/activation.h"
#include "fastmha/attention.h"
#include "fastmha/decoder.h"
#include "fastmha/encoder.h"
#include "fastmha/linear.h"
#include "fastmha/norm.h"
#include "fastmha/runtime.h"
#include "fastmha/sublayer.h"
#include "fastmha/top_k.h"
#include "fastmha/types.h"
