/*
cpu_layers.c: train_rrhf.c under other names, for test_cuda.cu. See cpu_layers.h.
*/
#define GPT2 CpuGPT2
#define gpt2_build cpu_gpt2_build
#define gpt2_free cpu_gpt2_free
#define gpt2_config cpu_gpt2_config
#define gpt2_get_part cpu_gpt2_get_part
#define gpt2_set_part cpu_gpt2_set_part
#define gpt2_bytes cpu_gpt2_bytes
#define gpt2_slot_bytes cpu_gpt2_slot_bytes
#define gpt2_tokens cpu_gpt2_tokens
#define gpt2_plan cpu_gpt2_plan
#define gpt2_unplan cpu_gpt2_unplan
#define gpt2_forward cpu_gpt2_forward
#define gpt2_backward cpu_gpt2_backward
#define gpt2_zero_grad cpu_gpt2_zero_grad
#define gpt2_grad_sum cpu_gpt2_grad_sum
#define gpt2_grad_norm cpu_gpt2_grad_norm
#define gpt2_update cpu_gpt2_update
#define gpt2_decode_plan cpu_gpt2_decode_plan
#define gpt2_decode_top cpu_gpt2_decode_top
#define gpt2_decode_draw cpu_gpt2_decode_draw
#define gpt2_step cpu_gpt2_step
#define gpt2_step_end cpu_gpt2_step_end
#define backend_start cpu_backend_start
#define backend_profile cpu_backend_profile
#define backend_dtype_set cpu_backend_dtype_set
#define backend_dtype cpu_backend_dtype
#define NO_MAIN
#include "../train_rrhf.c"   // defines: the CPU path
#include "cpu_layers.h"      // defines: CpuLayers

const CpuLayers cpu = {
    embedding_forward, embedding_backward, layernorm_forward, layernorm_backward, matmul_forward, matmul_backward,
    attention_forward, attention_backward, cache_write, attention_decode, gelu_forward, gelu_backward,
    classifier_forward, classifier_backward, head_forward, head_backward, gather_forward, gather_backward,
    gpt2_build, gpt2_free, gpt2_get, gpt2_set, gpt2_forward, gpt2_backward, gpt2_zero_grad, gpt2_grad_norm, gpt2_update,
    gpt2_decode_plan, decode_logits, step_room, train_step, sample, beam_search};
