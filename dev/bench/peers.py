#!/usr/bin/env python3
"""The Python programs that bench_cpu.sh and bench_cuda.sh measure beside ours; each prints `name value` pairs on one line.

  peers.py sample MODEL.bin ASK.bin THREADS [cuda]   transformers generate, 4 completions a query, top-k 50
  peers.py beam   MODEL.bin ASK.bin THREADS [cuda]   transformers generate, 4 beams, all 4 returned
      generate_ms M tokens N transformers V       48 new tokens for each sequence, all queries in one batch; on the GPU
                                                  in bfloat16
  peers.py tiktoken TOKENIZER.bin FILE
      encode_mb_per_s X tokens N sum S version V  one text on one thread; sum as dev/bench/encode.c says
  peers.py versions                               torch V compile 0|1, if torch is there

The weights, queries and vocabulary are those of our own files (model.h, dataloader.h, tokenizer.h).
"""
import sys, time


def gpt2(path):
    """Our checkpoint as transformers' GPT2LMHeadModel; end-of-text does not end a text, as it never does here."""
    import numpy as np, torch
    from transformers import GPT2Config, GPT2LMHeadModel
    h = np.fromfile(path, "<i4", 256)
    T, V, L, NH, C, Vp = (int(x) for x in h[2:8])
    p = torch.from_numpy(np.fromfile(path, "<f4", offset=1024))
    config = GPT2Config(vocab_size=V, n_positions=T, n_embd=C, n_layer=L, n_head=NH, bos_token_id=None, eos_token_id=None)
    model = GPT2LMHeadModel(config).eval()
    state, at = model.state_dict(), 0

    def take(name, layers, rows, cols, transpose=False):
        nonlocal at
        for l in range(layers):
            w = p[at:at + rows * cols].view(rows, cols)
            at += rows * cols
            into = state["transformer." + name.format(l)]
            into.copy_((w.t() if transpose else w)[:into.shape[0]] if into.dim() == 2 else w.view(-1))

    take("wte.weight", 1, Vp, C)  # the rows from V on are padding
    take("wpe.weight", 1, T, C)
    for name, rows, cols in (("ln_1.weight", 1, C), ("ln_1.bias", 1, C), ("attn.c_attn.weight", 3 * C, C), ("attn.c_attn.bias", 1, 3 * C),
                             ("attn.c_proj.weight", C, C), ("attn.c_proj.bias", 1, C), ("ln_2.weight", 1, C), ("ln_2.bias", 1, C),
                             ("mlp.c_fc.weight", 4 * C, C), ("mlp.c_fc.bias", 1, 4 * C), ("mlp.c_proj.weight", C, 4 * C), ("mlp.c_proj.bias", 1, C)):
        take("h.{}." + name, L, rows, cols, transpose=rows > 1)  # its Conv1D holds a matrix the other way round
    take("ln_f.weight", 1, 1, C)
    take("ln_f.bias", 1, 1, C)
    assert at == p.numel(), f"{path}: {p.numel()} parameters, read {at}"
    return model


def queries(path):
    """The queries of a ranked-responses file, all of one length, as (Q, length) ids."""
    import numpy as np, torch
    d, at, out = np.fromfile(path, np.uint8), 1024, []
    for _ in range(int(d[:1024].view("<i4")[2])):
        n, k = (int(x) for x in d[at:at + 8].view("<i4"))
        responses = int(d[at + 8:at + 8 + 12 * k].view("<i4")[::3].sum())
        at += 8 + 12 * k
        out.append(d[at:at + 2 * n].view("<u2").astype("int64"))
        at += 2 * (n + responses)
    return torch.from_numpy(np.stack(out))


def generate(how, model_path, ask_path, threads, device="cpu"):
    import torch, transformers
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    model, x, new = gpt2(model_path), queries(ask_path).to(device), 48
    gpu = device != "cpu"
    model = model.to(device, torch.bfloat16) if gpu else model
    args = dict(max_new_tokens=new, min_new_tokens=new, use_cache=True, pad_token_id=0, num_return_sequences=4,
                synced_gpus=False)  # given, lest it load torch.distributed, which Debian 12 has broken
    args.update(dict(do_sample=True, top_k=50) if how == "sample" else dict(do_sample=False, num_beams=4))
    with torch.inference_mode():
        few = x if gpu else x[:1]  # warm up: a GPU's kernels are loaded for the shapes that they are called with
        model.generate(few, attention_mask=torch.ones_like(few), **dict(args, max_new_tokens=2, min_new_tokens=2))
        if gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        y = model.generate(x, attention_mask=torch.ones_like(x), **args)
        if gpu:
            torch.cuda.synchronize()
        ms = (time.perf_counter() - start) * 1e3
    tokens = y.shape[0] * (y.shape[1] - x.shape[1])
    print(f"generate_ms {ms:.1f} tokens {tokens} transformers {transformers.__version__}")


def tiktoken_speed(vocabulary, path):
    import numpy as np, tiktoken
    try:
        from tiktoken_ext.openai_public import r50k_pat_str as pattern  # its own form of GPT-2's pattern, made for speed
    except ImportError:
        pattern = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    d = open(vocabulary, "rb").read()
    V, eot = (int(x) for x in np.frombuffer(d[8:16], "<i4"))
    at, ranks = 1024, {}
    for i in range(V):
        if i != eot:
            ranks.setdefault(d[at + 1:at + 1 + d[at]], i)
        at += 1 + d[at]
    enc = tiktoken.Encoding("gpt2 from a file", pat_str=pattern, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": eot})
    raw = open(path, "rb").read()
    text = raw.decode("utf-8")
    start = time.perf_counter()
    ids = enc.encode_ordinary(text)
    seconds = time.perf_counter() - start
    total = int((np.arange(1, len(ids) + 1, dtype=np.uint64) * np.array(ids, dtype=np.uint64)).sum(dtype=np.uint64))
    print(f"encode_mb_per_s {len(raw) / seconds / 1e6:.2f} tokens {len(ids)} sum {total} version {tiktoken.__version__}")


def versions():
    import torch
    print(f"torch {torch.__version__} compile {int(hasattr(torch, 'compile'))}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    verb, rest = sys.argv[1], sys.argv[2:]
    {"tiktoken": tiktoken_speed, "versions": versions}.get(verb, lambda *a: generate(verb, *a))(*rest)
