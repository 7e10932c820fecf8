#!/usr/bin/env python3
"""
make_reference.py: what PyTorch computes for a small GPT-2, for test/test_reference.c to compare with.

  python dev/make_reference.py [DIR]        (torch, transformers; writes three files to test/, about 290 KB)

  reference.model.bin    a reward model's checkpoint, our format (model.h): random weights; without its last C+1
                         parameters it is the policy
  reference.ranked.bin   ranked responses, our format (dataloader.h): k from 1 to 5, tied scores, all in 0..1
  reference.values.bin   records, little-endian: char[24] name (zero-padded), int32 bytes per value (4 or 8, a float),
                         int32 count, the values

It shares no code and no idea with the C program: Hugging Face's GPT2LMHeadModel in float64, every response a sequence
of its own, without padding, the losses as equations over autograd, torch.optim.AdamW. Same seed, same files.
"""
import struct
import sys

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

SEED, T, V, VP, L, NH, C = 2023, 32, 97, 104, 2, 3, 24
KS = [3, 1, 5, 2, 4, 1, 2, 3]
LR, DECAY, STEPS, BATCH, CLIP = 1e-3, 0.1, 10, 4, 2.0


# ------------------------------------------------------------------------------
# Parameters, in the order of model.h


def tensors(model, head):
    """(name, parameters, transposed, decay): Hugging Face keeps matrices as (in, out), the file as (out, in)."""
    g, blocks = model.transformer, model.transformer.h
    rows = [("wte", [g.wte.weight], 0, 1), ("wpe", [g.wpe.weight], 0, 1)]
    for name, get, decay in [
        ("ln1w", lambda b: b.ln_1.weight, 0), ("ln1b", lambda b: b.ln_1.bias, 0),
        ("qkvw", lambda b: b.attn.c_attn.weight, 1), ("qkvb", lambda b: b.attn.c_attn.bias, 0),
        ("attprojw", lambda b: b.attn.c_proj.weight, 1), ("attprojb", lambda b: b.attn.c_proj.bias, 0),
        ("ln2w", lambda b: b.ln_2.weight, 0), ("ln2b", lambda b: b.ln_2.bias, 0),
        ("fcw", lambda b: b.mlp.c_fc.weight, 1), ("fcb", lambda b: b.mlp.c_fc.bias, 0),
        ("fcprojw", lambda b: b.mlp.c_proj.weight, 1), ("fcprojb", lambda b: b.mlp.c_proj.bias, 0),
    ]:
        rows.append((name, [get(b) for b in blocks], decay, decay))
    rows += [("lnfw", [g.ln_f.weight], 0, 0), ("lnfb", [g.ln_f.bias], 0, 0)]
    return rows + [("rewardw", [head.weight], 0, 0), ("rewardb", [head.bias], 0, 0)]


def flat(rows, of):
    """of(parameter) of every tensor as one vector in file order; the padded rows of wte are 0."""
    out = []
    for name, params, transposed, _ in rows:
        for p in params:
            x = of(p).detach().numpy()
            out.append((x.T if transposed else x).ravel())
            if name == "wte":
                out.append(np.zeros((VP - V) * C))
    return np.concatenate(out)


def make_model():
    torch.manual_seed(SEED)
    config = GPT2Config(vocab_size=V, n_positions=T, n_embd=C, n_layer=L, n_head=NH, activation_function="gelu_new",
                        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=V - 1, eos_token_id=V - 1,
                        attn_implementation="eager")
    model, head = GPT2LMHeadModel(config).double().eval(), torch.nn.Linear(C, 1).double()
    rows = tensors(model, head)
    with torch.no_grad():
        for name, params, _, _ in rows:
            for p in params: # values that float32 holds, biases and LayerNorm no longer at 0 and 1
                mean = 1.0 if name in ("ln1w", "ln2w", "lnfw") else 0.0
                p.copy_((mean + 0.12 * torch.randn(p.shape)).float().double())
    return model, head, rows


# ------------------------------------------------------------------------------
# Data and files


def make_data(rng):
    data = []
    for k in KS:
        query = rng.integers(0, V, rng.integers(1, 11)).tolist()
        responses = [rng.integers(0, V, rng.integers(1, 13)).tolist() for _ in range(k)]
        data.append((query, [(y, int(rng.integers(0, 5)) / 4) for y in responses]))
    return data


def write_ranked(path, data):
    tokens = sum(len(q) + sum(len(y) for y, _ in ys) for q, ys in data)
    header = [20230411, 1, len(data), sum(KS), tokens, V]
    with open(path, "wb") as f:
        f.write(struct.pack("<256i", *header, *[0] * (256 - len(header))))
        for q, ys in data:
            f.write(struct.pack("<2i", len(q), len(ys)))
            for y, r in ys:
                f.write(struct.pack("<ifi", len(y), r, 0))
            for ids in [q] + [y for y, _ in ys]:
                f.write(np.array(ids, "<u2").tobytes())


def write_model(path, params):
    header = [20240326, 3, T, V, L, NH, C, VP, 1]
    params = params.copy()
    params[V * C:VP * C] = 7 # padding: must have no influence
    with open(path, "wb") as f:
        f.write(struct.pack("<256i", *header, *[0] * (256 - len(header))))
        f.write(params.astype("<f4").tobytes())


def write_values(path, values):
    with open(path, "wb") as f:
        for name, x in values.items():
            x = np.asarray(x).ravel()
            size = 4 if name.endswith("grad") else 8
            f.write(name.encode().ljust(24, b"\0") + struct.pack("<2i", size, x.size) + x.astype(f"<f{size}").tobytes())


# ------------------------------------------------------------------------------
# The objectives


def token_logps(model, query, y):
    logits = model(torch.tensor([query + y])).logits[0]
    rows = torch.log_softmax(logits[len(query) - 1:-1], -1)
    return rows[torch.arange(len(y)), torch.tensor(y)]


def reward(model, head, query, y):
    return head(model.transformer(torch.tensor([query + y])).last_hidden_state[0, -1])[0]


def rrhf(logps, rewards, rank_weight=1.0, ft_weight=1.0, alpha=1.0, margin=0.0, ft_mean=False):
    """Equations 1-5 for one query; logps: one vector per response. Returns loss, L_rank, L_ft, p."""
    p = [x.sum() / len(x) ** alpha for x in logps]
    places = sorted(set(rewards))
    rank = torch.zeros((), dtype=torch.float64)
    for i, ri in enumerate(rewards):
        for j, rj in enumerate(rewards):
            if ri < rj:
                rank = rank + torch.relu(p[i] - p[j] + margin * (places.index(rj) - places.index(ri)))
    best = rewards.index(max(rewards))
    ft = -(logps[best].mean() if ft_mean else logps[best].sum())
    return rank_weight * rank + ft_weight * ft, rank, ft, torch.stack(p)


def policy_loss(model, data, **objective):
    """The mean over queries of loss, L_rank, L_ft."""
    parts = [rrhf([token_logps(model, q, y) for y, _ in ys], [r for _, r in ys], **objective)[:3] for q, ys in data]
    return [sum(x) / len(data) for x in zip(*parts)]


def labels_loss(model, head, data):
    """Logistic; the mean over a query's responses, then over queries."""
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    total = 0
    for q, ys in data:
        z = torch.stack([reward(model, head, q, y) for y, _ in ys])
        total = total + bce(z, torch.tensor([r for _, r in ys], dtype=torch.float64))
    return total / len(data)


def pairs_loss(model, head, data):
    """-log sigmoid(z_better - z_worse); the mean over a query's pairs, 0 where it has none, then over queries."""
    total = torch.zeros((), dtype=torch.float64)
    for q, ys in data:
        z = [reward(model, head, q, y) for y, _ in ys]
        pairs = [-torch.nn.functional.logsigmoid(z[j] - z[i])
                 for i in range(len(z)) for j in range(len(z)) if ys[i][1] < ys[j][1]]
        if pairs:
            total = total + sum(pairs) / len(pairs)
    return total / len(data)


# ------------------------------------------------------------------------------
# Gradients and steps


def gradient(rows, loss):
    for _, params, _, _ in rows:
        for p in params:
            p.grad = torch.zeros_like(p)
    loss.backward()
    return flat(rows, lambda p: p.grad)


def curve(loss_of, data, clip):
    """Losses and gradient norms of STEPS steps from the start, BATCH queries each in turn."""
    losses, norms = [], []
    model, head, rows = make_model()
    groups = [{"params": [p for _, ps, _, d in rows if d == decays for p in ps], "weight_decay": DECAY * decays}
              for decays in (0, 1)]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.999), eps=1e-8)
    for step in range(STEPS):
        at = step * BATCH % len(data)
        loss = loss_of(model, head, data[at:at + BATCH])
        g = gradient(rows, loss)
        losses.append(loss.item())
        norms.append(np.sqrt((g * g).sum()))
        if clip and norms[-1] > clip:
            for _, params, _, _ in rows:
                for p in params:
                    p.grad *= clip / norms[-1]
        optimizer.step()
    return losses, norms


def main():
    directory = sys.argv[1] if len(sys.argv) > 1 else "test"
    torch.set_num_threads(1)
    data = make_data(np.random.default_rng(SEED))
    model, head, rows = make_model()
    values = {}
    logps = [[token_logps(model, q, y) for y, _ in ys] for q, ys in data]
    parts = [rrhf(lp, [r for _, r in ys]) for lp, (_, ys) in zip(logps, data)]
    values["logp"] = torch.cat([x for lp in logps for x in lp]).detach()
    values["p"] = torch.cat([x[3] for x in parts]).detach()
    for i, name in enumerate(["query.loss", "query.rank", "query.ft"]):
        values[name] = [x[i].item() for x in parts]
    variants = {"rrhf": {}, "variant": dict(rank_weight=2.0, ft_weight=0.5, alpha=0.5, margin=0.1, ft_mean=True)}
    for name, objective in variants.items():
        losses = policy_loss(model, data, **objective)
        g = gradient(rows, losses[0])
        values[name] = [x.item() for x in losses] + [np.sqrt((g * g).sum())]
        if name == "rrhf":
            values["rrhf.grad"] = g[:-(C + 1)]
    values["head"] = [reward(model, head, q, y).item() for q, ys in data for y, _ in ys]
    for name, f in [("labels", labels_loss), ("pairs", pairs_loss)]:
        loss = f(model, head, data)
        values[name + ".grad"] = gradient(rows, loss)
        values[name] = [loss.item(), np.sqrt((values[name + ".grad"] ** 2).sum())]
    write_model(f"{directory}/reference.model.bin", flat(rows, lambda p: p))
    curves = {"rrhf": lambda m, h, d: policy_loss(m, d)[0], "labels": labels_loss, "pairs": pairs_loss}
    for name, f in curves.items():
        for suffix, clip in [("curve", 0), ("clipped", CLIP if name == "rrhf" else 0.2)]:
            values[f"{name}.{suffix}"], values[f"{name}.{suffix}.norm"] = curve(f, data, clip)
    write_ranked(f"{directory}/reference.ranked.bin", data)
    write_values(f"{directory}/reference.values.bin", values)
    for name, x in values.items():
        print(name, np.asarray(x).ravel()[:10])


if __name__ == "__main__":
    main()
