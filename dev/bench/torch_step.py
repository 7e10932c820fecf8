#!/usr/bin/env python3
"""The step that the benchmarks are held against: RRHF on GPT-2 as one would write it in PyTorch.

Each response is a full row with its query repeated in front, logits are computed for the rows that predict a response's
token, AdamW is PyTorch's own. Random weights, queries, responses and rewards, new ones at every step.

  torch_step.py [--steps 5] [--threads 2] [--bf16] [--compile] [--device cuda] [--queries 1] ...

Prints a line per step and at the end `median_ms X tokens_per_s Y peak_rss_mib Z`: the median leaves out two first steps,
tokens are the distinct ones, queries * (query + k * resp).
"""
import argparse
import resource
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F


def attention(qkv, heads):  # (rows, T, 3C) -> (rows, T, C), causal
    rows, T, C3 = qkv.shape
    q, k, v = qkv.view(rows, T, 3, heads, C3 // 3 // heads).permute(2, 0, 3, 1, 4)
    if hasattr(F, "scaled_dot_product_attention"):
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:  # PyTorch 1
        later = torch.full((T, T), float("-inf"), device=q.device).triu(1)
        out = torch.softmax(q @ k.transpose(2, 3) * q.shape[-1] ** -0.5 + later, -1) @ v
    return out.transpose(1, 2).reshape(rows, T, C3 // 3)


class Policy(nn.Module):
    def __init__(self, a):
        super().__init__()
        C = a.channels
        self.heads = a.heads
        self.wte, self.wpe, self.lnf = nn.Embedding(a.vocab, C), nn.Embedding(1024, C), nn.LayerNorm(C)
        self.blocks = nn.ModuleList(nn.ModuleDict(dict(
            ln1=nn.LayerNorm(C), qkv=nn.Linear(C, 3 * C), attproj=nn.Linear(C, C),
            ln2=nn.LayerNorm(C), fc=nn.Linear(C, 4 * C), fcproj=nn.Linear(4 * C, C))) for _ in range(a.layers))
        for w in self.parameters():
            if w.dim() == 2:
                nn.init.normal_(w, std=0.02)

    def forward(self, tokens, predicting):  # logits of the positions from `predicting` on
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for b in self.blocks:
            x = x + b["attproj"](attention(b["qkv"](b["ln1"](x)), self.heads))
            x = x + b["fcproj"](F.gelu(b["fc"](b["ln2"](x)), approximate="tanh"))
        return F.linear(self.lnf(x[:, predicting:]), self.wte.weight)


def rrhf_loss(logits, y, rewards):  # equations 1 to 5: rewards (queries, k)
    logp = torch.log_softmax(logits.float(), -1).gather(2, y[..., None])[..., 0].view(*rewards.shape, -1)
    p = logp.mean(-1)
    worse = rewards[:, :, None] < rewards[:, None, :]
    rank = (torch.relu(p[:, :, None] - p[:, None, :]) * worse).sum((1, 2))
    best = rewards.argmax(1)
    return (rank - logp[torch.arange(len(best)), best].sum(-1)).mean()


def main():
    parser = argparse.ArgumentParser()
    sizes = dict(layers=12, channels=768, heads=12, vocab=50257, queries=1, query=64, resp=48, k=6, steps=5, threads=2)
    for name, value in sizes.items():
        parser.add_argument("--" + name, type=int, default=value)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    a = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(a.threads)
    policy = Policy(a).to(a.device)
    forward = torch.compile(policy) if a.compile else policy
    optimizer = torch.optim.AdamW(policy.parameters(), lr=2e-5, weight_decay=0, **(dict(fused=True) if a.device == "cuda" else {}))
    times = []
    for step in range(a.steps + 2):
        x = torch.randint(a.vocab, (a.queries, a.query)).repeat_interleave(a.k, 0).to(a.device)
        y = torch.randint(a.vocab, (a.queries * a.k, a.resp)).to(a.device)
        rewards = torch.randn(a.queries, a.k).to(a.device)
        if a.device != "cpu":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        with torch.autocast(a.device, torch.bfloat16, enabled=a.bf16):
            logits = forward(torch.cat((x, y[:, :-1]), 1), a.query - 1)
        loss = rrhf_loss(logits, y, rewards)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        value = loss.item()  # waits for the device
        times.append(1e3 * (time.perf_counter() - begin))
        print(f"step {step} loss {value:.4f} {times[-1]:.1f} ms", flush=True)
    median = statistics.median(times[2:])
    tokens = a.queries * (a.query + a.k * a.resp)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"median_ms {median:.1f} tokens_per_s {1e3 * tokens / median:.0f} peak_rss_mib {peak:.0f}")


if __name__ == "__main__":
    main()
