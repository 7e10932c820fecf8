"""ptx.py: PTX, the assembly that nvcc makes of kernels, as C++ for test/cuda_emulation.h.

  nvcc -std=c++17 -O3 -ptx -arch=compute_80 -o kernels.ptx train_rrhf.cu
  python3 test/ptx.py < kernels.ptx > kernels.h

The emulation by itself runs the kernels' source, compiled for the CPU. This runs what nvcc made of it, instruction by
instruction: its optimisations, its mathematics (exp, pow, division), bfloat16 conversions, and the
inline instructions (cp.async, ldmatrix, mma) with their operands as written. What is left to a GPU is ptxas and the
hardware.

An instruction is one line of C++; what it does is said in "The instructions" below, after the PTX ISA. An instruction
that is not there ends the translation with its name.
"""
import re
import sys

PRELUDE = r"""
#include <fenv.h>        // defines: fesetround
#include <limits>        // defines: numeric_limits
// A register's bits as a T, and back: PTX's registers have a width, its instructions a type.
template <typename T, typename R> static inline T ptx_get(R r) {
    T t;
    static_assert(sizeof(T) <= sizeof(R), "no more bits than the register has");
    memcpy(&t, &r, sizeof t);
    return t;
}
template <typename T, typename R> static inline void ptx_set(R &r, T t) { // a narrower integer: widened by its sign
    if constexpr (sizeof(R) == sizeof(T)) memcpy(&r, &t, sizeof r);
    else r = (R)t;
}
template <typename T> static inline T ptx_load(uint64_t at, int line) {
    if (at % sizeof(T)) emu_fail("access that is not aligned", line, (int)sizeof(T));
    T t;
    memcpy(&t, (const void *)(uintptr_t)at, sizeof t);
    return t;
}
template <typename T> static inline void ptx_store(uint64_t at, T t, int line) {
    if (at % sizeof(T)) emu_fail("access that is not aligned", line, (int)sizeof(T));
    memcpy((void *)(uintptr_t)at, &t, sizeof t);
}
template <typename T> static inline uint64_t ptx_at(uint64_t at, int n, int line) { // of a vector of n
    if (at % (n * sizeof(T))) emu_fail("vector access that is not aligned", line, n * (int)sizeof(T));
    return at;
}
static inline float ptx_ftz(float x) { return fpclassify(x) == FP_SUBNORMAL ? copysignf(0, x) : x; }
static inline float ptx_saturate(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; } // a NaN becomes 0
static inline float ptx_fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline double ptx_fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
static inline float ptx_fma_down(float a, float b, float c) {
    volatile float x = a, y = b, z = c;
    fesetround(FE_DOWNWARD);
    volatile float r = __builtin_fmaf(x, y, z);
    fesetround(FE_TONEAREST);
    return r;
}
template <typename T> static inline T ptx_max(T a, T b) { return a != a ? b : b != b ? a : a > b ? a : b; }
template <typename T> static inline T ptx_min(T a, T b) { return a != a ? b : b != b ? a : a < b ? a : b; }
template <typename T> static inline T ptx_shl(T a, unsigned n) { return n < 8 * sizeof a ? (T)(a << n) : 0; }
template <typename T> static inline T ptx_shr(T a, unsigned n) {
    return n < 8 * sizeof a ? a >> n : (T)(a < 0 ? -1 : 0);
}
template <typename T> static inline T ptx_insert(T a, T b, unsigned at, unsigned n) {
    T ones = (n < 8 * sizeof(T) ? ((T)1 << n) - 1 : ~(T)0) << at;
    return (b & ~ones) | (a << at & ones);
}
static inline uint32_t ptx_permute(uint32_t a, uint32_t b, uint32_t chosen) { // four bits a byte of the result
    uint64_t bytes = (uint64_t)b << 32 | a;
    uint32_t d = 0;
    for (int i = 0; i < 4; i++, chosen >>= 4) {
        uint8_t byte = (uint8_t)(bytes >> 8 * (chosen & 7));
        if (chosen & 8) byte = byte & 0x80 ? 0xff : 0; // its sign alone
        d |= (uint32_t)byte << 8 * i;
    }
    return d;
}
template <typename T, typename F> static inline T ptx_truncate(F x) { // out of range: the nearest that fits; a NaN: 0
    if (x != x) return 0;
    F low = (F)std::numeric_limits<T>::min(), high = ldexp((F)1, std::numeric_limits<T>::digits);
    return x <= low ? std::numeric_limits<T>::min() : x >= high ? std::numeric_limits<T>::max() : (T)x;
}
static inline int ptx_lane() { return (int)threadIdx.x % WARP; }
static inline uint32_t ptx_shuffle(uint32_t mask, uint32_t v, int from, uint32_t clamp, int line) {
    if (clamp != 31) emu_fail("a shuffle of a part of the warp: not emulated", line, (int)clamp);
    return emu_shuffle(mask, v, from, line);
}
"""

TYPES = {"f32": "float", "f64": "double", "pred": "bool"}
for bits in (8, 16, 32, 64):
    TYPES.update({f"u{bits}": f"uint{bits}_t", f"b{bits}": f"uint{bits}_t", f"s{bits}": f"int{bits}_t"})
SPECIAL = {"%tid": "threadIdx", "%ntid": "blockDim", "%ctaid": "blockIdx", "%nctaid": "gridDim"}
PLAIN = {  # of the operands, read as the instruction's type
    "mov": "{1}", "cvta": "{1}", "add": "{1} + {2}", "sub": "{1} - {2}", "mul": "{1} * {2}", "div": "{1} / {2}",
    "rem": "{1} % {2}", "and": "{1} & {2}", "or": "{1} | {2}", "xor": "{1} ^ {2}", "neg": "-{1}", "sqrt": "sqrt({1})",
    "rcp": "1 / {1}", "min": "ptx_min({1}, {2})", "max": "ptx_max({1}, {2})", "fma": "ptx_fma({1}, {2}, {3})"}
COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


def name(symbol):
    return symbol.replace("%", "R_")


def value(operand, t):
    """The C++ expression for an operand read as type t."""
    c = TYPES[t]
    if m := re.fullmatch(r"0[fF]([0-9A-Fa-f]{8})", operand):
        return f"ptx_get<float>(0x{m[1]}u)"
    if m := re.fullmatch(r"0[dD]([0-9A-Fa-f]{16})", operand):
        return f"ptx_get<double>((uint64_t)0x{m[1]}ull)"
    if re.fullmatch(r"-?\d+|-?0[xX][0-9A-Fa-f]+", operand):
        return f"({c}){operand}ll" if operand != str(-2**63) else f"({c})INT64_MIN"
    if m := re.fullmatch(r"(%n?(?:cta|t)id)\.([xyz])", operand):
        return f"({c}){SPECIAL[m[1]]}.{m[2]}"
    if not operand.startswith("%"):
        return f"(uint64_t)(uintptr_t){symbol(operand)}"
    return f"ptx_get<{c}>({name(operand)})"


def symbol(s):
    return "emu.shared" if s == "shared_room" else s


def address(operand):
    m = re.fullmatch(r"\[([^+\]]+)(?:\+(-?\d+))?\]", operand)
    base, offset = m[1], m[2] or 0
    at = f"(uint64_t){name(base)}" if base.startswith("%") else f"(uint64_t)(uintptr_t){symbol(base)}"
    return f"({at} + {offset})"


class Function:
    def __init__(self, params):
        self.params = params  # a name each, in order; the pointer to parameter i is param[i]

    def parameter(self, operand):
        m = re.fullmatch(r"\[([^+\]]+)(?:\+(\d+))?\]", operand)
        base = f"param[{self.params.index(m[1])}]" if m[1] in self.params else m[1]
        return f"((char *){base} + {m[2] or 0})"

    # ------------------------------------------------------------------------
    # The instructions
    def instruction(self, op, args, line):
        part = op.split(".")
        base, t = part[0], part[-1]

        def to(value_, dest=args[0] if args else "", as_=None):
            return f"ptx_set<{TYPES[as_ or t]}>({name(dest)}, {value_});"

        def a(i, as_=None):
            return value(args[i], as_ or t)

        if base in ("ld", "st"):
            space = next((p for p in part[1:] if p in ("global", "shared", "local", "param")), "generic")
            many = [p for p in part if re.fullmatch(r"v[24]", p)]
            where, what = (args[1], args[0]) if base == "ld" else (args[0], args[1])
            regs = re.findall(r"[^{},\s]+", what)
            assert len(regs) == (int(many[0][1]) if many else 1), op
            if space == "param":
                at = self.parameter(where)
                c = TYPES[t]
                if base == "ld":
                    return f"{{ {c} x; memcpy(&x, {at}, sizeof x); {to('x', what)} }}"
                return f"{{ {c} x = {value(what, t)}; memcpy({at}, &x, sizeof x); }}"
            c = TYPES[t]
            at = f"uint64_t at = ptx_at<{c}>({address(where)}, {len(regs)}, {line});"
            if base == "ld":
                body = " ".join(to(f"ptx_load<{c}>(at + {i} * sizeof({c}), {line})", r) for i, r in enumerate(regs))
            else:
                body = " ".join(f"ptx_store<{c}>(at + {i} * sizeof({c}), {value(r, t)}, {line});"
                                for i, r in enumerate(regs))
            return f"{{ {at} {body} }}"
        if base == "mov" and "{" in args[0]:  # one register into its parts
            regs = re.findall(r"[^{},\s]+", args[0])
            half = {"b32": "b16", "b64": "b32"}[t]
            return f"{{ {TYPES[t]} x = {a(1)}; " + " ".join(
                to(f"({TYPES[half]})(x >> {i * int(half[1:])})", r, half) for i, r in enumerate(regs)) + " }"
        if base == "mov" and "{" in args[1]:
            regs = re.findall(r"[^{},\s]+", args[1])
            half = {"b32": "b16", "b64": "b32"}[t]
            return to(" | ".join(f"({TYPES[t]}){value(r, half)} << {i * int(half[1:])}" for i, r in enumerate(regs)))
        if base in ("mul", "mad") and "f" not in t:
            wide = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}.get(t) if part[1] == "wide" else t
            c = TYPES[wide]
            assert part[1] in ("lo", "wide"), op
            product = f"({TYPES[wide.replace('s', 'u')]})({c}){a(1)} * ({TYPES[wide.replace('s', 'u')]})({c}){a(2)}"
            more = f" + ({TYPES[wide.replace('s', 'u')]}){a(3, wide)}" if base == "mad" else ""
            return to(f"({c})({product}{more})", as_=wide)
        if base == "fma" and part[1] == "rm":
            return to(f"ptx_fma_down({a(1)}, {a(2)}, {a(3)})")
        if base in PLAIN:
            assert set(part[1:-1]) <= {"rn", "approx", "full", "ftz", "to", "global", "shared", "local"}, op
            values = [value(x, t) if n else "" for n, x in enumerate(args)]
            return to(f"({TYPES[t]})({PLAIN[base].format(*values)})")
        if base == "abs":
            return to(f"fabs({a(1)})" if "f" in t else f"({TYPES[t]})llabs({a(1)})")
        if op == "ex2.approx.f32":
            return to(f"exp2f({a(1)})")
        if op == "ex2.approx.ftz.f32":
            return to(f"ptx_ftz(exp2f(ptx_ftz({a(1)})))")
        if base == "not":
            return to(f"({TYPES[t]}){'!' if t == 'pred' else '~'}{a(1)}")
        if base in ("shl", "shr"):
            return to(f"ptx_{base}<{TYPES[t]}>({a(1)}, {a(2, 'u32')})")
        if base == "bfi":
            return to(f"ptx_insert<{TYPES[t]}>({a(1)}, {a(2)}, {a(3, 'u32')}, {a(4, 'u32')})")
        if op == "prmt.b32":
            return to(f"ptx_permute({a(1)}, {a(2)}, {a(3)})")
        if base == "selp":
            return to(f"{name(args[3])} ? {a(1)} : {a(2)}")
        if base == "setp" and len(part) == 3:
            unordered = t[0] == "f" and part[1].endswith("u")  # true also where one of them is a NaN
            compare = COMPARE[part[1][:-1] if unordered else part[1]]
            x, y = a(1), a(2)
            if t[0] == "f" and part[1] == "ne":
                return f"{name(args[0])} = {x} < {y} || {x} > {y};"
            more = f" || {x} != {x} || {y} != {y}" if unordered else ""
            return f"{name(args[0])} = {x} {compare} {y}{more};"
        if base == "cvt":
            d, s = part[-2], part[-1]
            if op == "cvt.rn.bf16.f32":
                return to(f"__float2bfloat16_rn({a(1)}).bits", as_="u16")
            if op == "cvt.f32.bf16":
                return to(f"__uint_as_float((uint32_t){a(1, 'u16')} << 16)", as_="f32")
            x = a(1, s)
            if part[1] == "sat":
                x = f"ptx_saturate({x})"
            elif part[1] == "rpi":
                x = f"ceil({x})"
            elif part[1] == "rzi" and "f" in d:
                x = f"trunc({x})"
            elif part[1] == "rzi":
                x = f"ptx_truncate<{TYPES[d]}>({x})"
            else:
                assert len(part) == 3 and "f" not in s + d or part[1] == "rn" or (d, s) == ("f64", "f32"), op
            return to(f"({TYPES[d]}){x}", as_=d)
        if op == "shfl.sync.bfly.b32" or op == "shfl.sync.idx.b32":
            d, p = args[0].split("|")
            lane = f"(ptx_lane() ^ (int){a(2)})" if "bfly" in op else f"(int){a(2)}"
            return f"{to(f'ptx_shuffle({a(4)}, {a(1)}, {lane}, {a(3)}, {line})', d)} {name(p)} = true;"
        if base == "cp" and part[1] == "async":
            if op == "cp.async.wait_all":
                return "emu_copies_wait();"
            assert op == "cp.async.cg.shared.global" and args[2] == "16", (op, args)
            to_, from_ = (f"(void *)(uintptr_t){at}" for at in (f"(uint32_t){address(args[0])}", address(args[1])))
            return f"emu_copy_async({to_}, {from_}, {value(args[3], 's32')}, {line});"
        if op == "bar.sync":
            assert args == ["0"], args
            return f"emu_syncthreads({line});"
        if op == "bar.warp.sync":
            assert args == ["-1"], args
            return f"(void)emu_exchange(0, 0, {line});"
        if op in ("atom.shared.add.u32", "red.shared.add.u32"):  # fibers change places at barriers and warp operations only
            where, more = args[-2:]
            return (f"{{ uint64_t at = {address(where)}; uint32_t x = ptx_load<uint32_t>(at, {line}); "
                    f"ptx_store<uint32_t>(at, x + {value(more, t)}, {line}); {to('x') if base == 'atom' else ''} }}")
        if base == "ldmatrix":
            assert op.replace(".trans", "") == "ldmatrix.sync.aligned.m8n8.x4.shared.b16", op
            regs = re.findall(r"[^{},\s]+", args[0])
            assert len(regs) == 4
            row = f"(void *)(uintptr_t)(uint32_t){address(args[1])}"
            return (f"{{ uint32_t d[4]; emu_ldmatrix(d, {row}, {int('trans' in op)}, {line}); "
                    + " ".join(to(f"d[{i}]", r, "u32") for i, r in enumerate(regs)) + " }")
        if op == "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32":
            d, x, y, z = (re.findall(r"[^{},\s]+", g) for g in args)
            assert (len(d), len(x), len(y), len(z)) == (4, 4, 2, 4)
            words = ", ".join(value(r, "u32") for r in x), ", ".join(value(r, "u32") for r in y)
            sums = ", ".join(value(r, "f32") for r in z)
            return (f"{{ uint32_t a[4] = {{{words[0]}}}, b[2] = {{{words[1]}}}; float c[4] = {{{sums}}}; "
                    f"emu_mma(c, a, b, {line}); " + " ".join(to(f"c[{i}]", r, "f32") for i, r in enumerate(d)) + " }")
        if base == "bra":
            return f"goto {args[0].replace('$', '_')};"
        if base == "ret":
            return "return;"
        if base == "call":
            results, callee, given = (re.findall(r"[^(),\s]+", g) for g in args)
            return f"{{ void *given[] = {{{', '.join(results + given)}}}; ptx_{callee[0]}(given); }}"
        sys.exit(f"ptx.py: line {line}: no such instruction here: {op}")

    def statement(self, text, line):
        if text.startswith(".pragma"):
            return ""
        if m := re.fullmatch(r"\.reg \.(\w+) (.*)", text):
            c = TYPES[m[1]]
            names = []
            for r in re.split(r",\s*", m[2]):
                n = re.fullmatch(r"(%?\w+)<(\d+)>", r)
                names += [f"{n[1]}{i}" for i in range(int(n[2]))] if n else [r]
            return f"{c} " + ", ".join(map(name, names)) + ";"
        if m := re.fullmatch(r"\.(shared|local|param) (?:\.align (\d+) )?\.[busf](\d+) ([\w$]+)(?:\[(\d+)\])?", text):
            size = int(m[3]) // 8 * int(m[5] or 1)
            where = 'static __attribute__((section("emu_arrays"))) ' if m[1] == "shared" else ""
            return f"alignas({m[2] or 8}) {where}char {m[4]}[{size}];"
        guard = ""
        if m := re.match(r"@(!?)(%\w+) (.*)", text):
            guard, text = f"if ({m[1]}{name(m[2])}) ", m[3]
        op, _, rest = text.partition(" ")
        args = [x.strip() for x in re.split(r",(?![^{(]*[})])", rest)] if rest else []
        body = self.instruction(op, args, line)
        return f"{guard}{{ {body} }}" if guard else body


HEAD = re.compile(r"\.(entry|func)\s*(?:\(\.param \.\w+ (\w+)\)\s*)?([\w$]+)\s*\(([^()]*)\)[^;{]*([;{])")
TOKEN = re.compile(r"(\$\w+):|([{}])|([^\s{};$][^;]*);")  # a label, a brace, or a statement, which may hold braces


def main():
    text = re.sub(r"//[^\n]*", "", sys.stdin.read())
    heads, out, kernels, at, line = [], [], [], 0, 1
    while head := HEAD.search(text, at):
        kind, result, fn, params, end = head.groups()
        line += text.count("\n", at, head.end())
        at = head.end()
        heads.append(f"static void ptx_{fn}(void *const *param);")
        if end == ";":
            continue
        if kind == "entry":
            kernels.append(fn)
        out.append(f"static void ptx_{fn}(void *const *param) {{\n    (void)param;")
        params = re.findall(r"([\w$]+)(?:\[\d+\])?\s*(?:,|$)", params.strip())
        function = Function(([result] if result else []) + params)
        depth = 1
        while depth:
            token = TOKEN.search(text, at)
            line += text.count("\n", at, token.end())
            at = token.end()
            label, brace, statement = token.groups()
            if label:
                out.append(label.replace("$", "_") + ":;")
            elif brace:
                out.append(brace)
                depth += 1 if brace == "{" else -1
            else:
                out.append("    " + function.statement(re.sub(r"\s+", " ", statement), line))
    print("// made by test/ptx.py", PRELUDE, *heads, *out, sep="\n")
    print("static const struct { const char *name; void (*run)(void *const *param); } ptx_kernels[] = {")
    print(*(f'    {{"{k}", ptx_{k}}},' for k in kernels), "};", sep="\n")


main()
