#!/usr/bin/env python3
"""Writes test/beam_cases.bin: small random GPT-2s, prompts, and what Hugging Face generate finds with beams.

    pip install transformers==4.46.3 torch && python3 dev/make_beam_cases.py

The version is pinned: group (diverse) beam search has left later transformers. The models differ in how likely
end-of-text is: the final LayerNorm's bias points along a fixed direction, and how much of it is in end-of-text's
embedding is, the classifier being tied, a bias on its logit. Each prompt runs on its own, without padding.

File, little-endian: int32 bytes of a text that names the versions, that text; int32 models; per model
  int32 bytes of a checkpoint (bfloat16), the checkpoint; int32 prompts; per prompt int32 length, uint16 tokens;
  int32 settings; per setting
    int32 num_beams, num_beam_groups, num_return, max_new_tokens; float32 diversity_penalty, length_penalty;
    per prompt, per returned response: int32 length, float32 score, uint16 tokens (end-of-text included).
"""
import os
import struct
import sys
import warnings

import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel

V, T, L, NH, C = 53, 40, 2, 2, 24
EOT = V - 1
PROMPTS = (1, 3, 7, 12)  # tokens
MODELS = ((11, "early", 8.0), (12, "sometimes", 3.4), (13, "late", 2.6), (14, "never", -30.0), (15, "sometimes", 5.0))

# num_beams, num_beam_groups, num_return, max_new_tokens, diversity_penalty, length_penalty
SETTINGS = (
    (1, 1, 1, 20, 0.0, 1.0),
    (4, 1, 4, 20, 0.0, 1.0),    # the paper's BP
    (4, 1, 4, 20, 0.0, 0.0),
    (4, 1, 4, 20, 0.0, 2.0),
    (4, 1, 4, 20, 0.0, -1.0),
    (5, 1, 2, 1, 0.0, 1.0),
    (8, 1, 3, 28, 0.0, 1.0),
    (4, 4, 4, 20, 1.0, 1.0),    # the paper's DP
    (4, 4, 4, 20, 1.0, -1.0),
    (6, 3, 6, 20, 0.5, 1.0),
    (6, 3, 3, 20, 0.5, 1.0),
    (6, 2, 6, 28, 2.5, 0.0),
    (8, 4, 8, 12, 0.2, 2.0),
)


def build(seed, bias):
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_positions=T, n_embd=C, n_layer=L, n_head=NH,
                                       bos_token_id=EOT, eos_token_id=EOT)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "ln" not in name:
                p.normal_(0, 0.5 if p.dim() == 2 else 0.1)  # much larger than GPT-2's: peaked distributions
        u = torch.nn.functional.normalize(torch.randn(C), dim=0)
        model.transformer.ln_f.bias.copy_(2 * u)
        model.transformer.wte.weight[EOT] += (bias / 2) * u
        for p in model.parameters():
            p.copy_(p.bfloat16().float())  # what the file holds, exactly
    return model


def bf16(t):
    return (t.detach().contiguous().float().numpy().view("<u4") >> 16).astype("<u2").tobytes()


def checkpoint(model):
    """The order of model.h: each tensor of a block stacked over the blocks; Conv1D weights transposed."""
    d, parts = model.transformer.state_dict(), []
    block = ("ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight",
             "attn.c_proj.bias", "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias",
             "mlp.c_proj.weight", "mlp.c_proj.bias")
    parts += [d["wte.weight"], d["wpe.weight"]]
    for name in block:
        stacked = torch.stack([d[f"h.{l}.{name}"] for l in range(L)])
        parts.append(stacked.transpose(1, 2) if stacked.dim() == 3 else stacked)
    parts += [d["ln_f.weight"], d["ln_f.bias"]]
    header = struct.pack("<8i", 20240326, 5, T, V, L, NH, C, V).ljust(1024, b"\0")
    return header + b"".join(bf16(p) for p in parts)


def greedy_score(model, ids, n):
    """generate gives no score with one beam: the mean log-probability of the n new tokens."""
    logp = torch.log_softmax(model(ids[:, :-1]).logits.float(), -1).gather(2, ids[:, 1:, None])
    return logp[0, -n:].sum().item() / n


def generate(model, prompt, setting, **more):
    beams, groups, returns, new, diversity, length_penalty = setting
    options = dict(max_new_tokens=new, do_sample=False, pad_token_id=EOT, eos_token_id=EOT, output_scores=True,
                   return_dict_in_generate=True, num_beams=beams, num_return_sequences=returns)
    if beams > 1:
        options["length_penalty"] = length_penalty
    if groups > 1:
        options.update(num_beam_groups=groups, diversity_penalty=diversity)
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), synced_gpus=False, **options, **more)
    result = []
    for i in range(returns):
        y = out.sequences[i, len(prompt):].tolist()
        y = y[:y.index(EOT) + 1] if EOT in y else y  # the rest is padding
        score = out.sequences_scores[i].item() if beams > 1 else \
            greedy_score(model, out.sequences[:, :len(prompt) + len(y)], len(y))
        result.append((y, score))
    return result


def main():
    assert transformers.__version__ == "4.46.3", "pip install transformers==4.46.3"
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    names = f"transformers {transformers.__version__}, torch {torch.__version__}".encode()
    out = struct.pack("<i", len(names)) + names + struct.pack("<i", len(MODELS))
    for seed, kind, bias in MODELS:
        model = build(seed, bias)
        blob = checkpoint(model)
        prompts = [torch.randint(0, EOT, (n,)).tolist() for n in PROMPTS]
        out += struct.pack("<i", len(blob)) + blob + struct.pack("<i", len(prompts))
        for p in prompts:
            out += struct.pack(f"<i{len(p)}H", len(p), *p)
        out += struct.pack("<i", len(SETTINGS))
        ended = total = 0
        for s in SETTINGS:
            out += struct.pack("<4i2f", *s)
            for p in prompts:
                found = generate(model, p, s)
                if s[0] > 1:  # temperature is of no effect without sampling
                    assert found == generate(model, p, s, temperature=0.8)
                for y, score in found:
                    out += struct.pack(f"<if{len(y)}H", len(y), score, *y)
                    ended += y[-1] == EOT
                    total += 1
        print(f"seed {seed}, end-of-text {kind}: {ended} of {total} responses end with it", file=sys.stderr)
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "test", "beam_cases.bin")
    with open(path, "wb") as f:
        f.write(out)
    print(f"{os.path.normpath(path)}: {len(out)} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
