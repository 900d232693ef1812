"""Compiles every kernel for real GPUs, without one: `python compile_kernels.py` in a process that does not interpret.

Each operation is called as a user calls it, on CPU tensors. In the place of its kernels stand recorders, which compile
for the arguments of the launch as Triton would specialise them (ones become constants, multiples of 16 are marked), and
launch nothing. Prints one JSON line per kernel and target.
"""

import importlib
import json

import torch

TARGETS = (80, 90)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WORDS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int64: "i64", torch.bool: "i1"}


class Recorder:
    """Stands for a kernel and compiles what is launched."""

    def __init__(self, kernel, label):
        self.kernel, self.label = kernel, label

    def __getitem__(self, grid):
        return self.compile

    def compile(self, *args, num_stages=None, **constants):
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        values = dict(zip(self.kernel.arg_names, args, strict=False)) | constants
        assert list(values) == self.kernel.arg_names, f"{self.kernel.fn.__name__}: arguments do not line up"
        signature, fixed, marks = {}, {}, {}
        for i, (name, value) in enumerate(values.items()):
            if name in constants or (isinstance(value, int) and value == 1):
                signature[name], fixed[name] = "constexpr", value
                continue
            if isinstance(value, torch.Tensor):
                signature[name] = "*" + WORDS[value.dtype]
                divisible = value.data_ptr() % 16 == 0
            elif isinstance(value, float):
                signature[name], divisible = "fp32", False
            else:
                signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
                divisible = value % 16 == 0
            if divisible:
                marks[(i,)] = [["tt.divisibility", 16]]
        for target in TARGETS:
            done = triton.compile(
                ASTSource(self.kernel, signature=signature, constexprs=fixed, attrs=marks),
                target=GPUTarget("cuda", target, 32),
                options={} if num_stages is None else {"num_stages": num_stages},
            )
            line = {"kernel": self.kernel.fn.__name__, "target": target, "case": self.label,
                    "cubin": len(done.asm["cubin"]), "shared": done.metadata.shared}  # fmt: skip
            print(json.dumps(line), flush=True)


def patch_rows(ones: bool, dtype):
    from mechvis.kernels.patch_rows import triton

    shape = (1, 1, 1, 1) if ones else (3, 197, 12, 64)
    index = torch.tensor([0]) if ones else torch.arange(3)
    x, table = torch.zeros(shape, dtype=dtype), torch.zeros(len(index), shape[3], dtype=dtype)
    factor = torch.ones(len(index), dtype=dtype)
    a, b = x.clone().requires_grad_(), table.clone().requires_grad_()
    triton.patch_rows(a, index, index, index, factor, factor, b, index).sum().backward()
    triton.patch_rows_(x, index, index, index, factor, factor, table, index)
    triton.patch_rows_(x, index, index, index, factor, factor)


def expand_norm(ones: bool, dtype):
    from mechvis.kernels.expand_norm import triton

    n, t, u, e, d = (1, 1, 1, 1, 1) if ones else (2, 197, 12, 64, 768)
    shapes = ((n, t, d), (n, t, u, e), (u, e, d), (d,), (d,), (d,))
    tensors = [torch.zeros(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    rows, normed = triton.expand_norm(*tensors, eps=1e-6)
    (rows.sum() + normed.sum()).backward()
    triton.expand_norm(*tensors[:3], eps=1e-6)


def patch_attention(ones: bool, dtype):
    from mechvis.kernels.patch_attention import triton

    rows, n, heads, width = (1, 1, 1, 1) if ones else (2, 197, 12, 64)
    q, k, v = torch.zeros(3, rows, n, heads, width, dtype=dtype).unbind(0)
    head, mask = torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, n, dtype=torch.bool)
    triton.patch_attention(q, k, v, head, scale=0.125)
    triton.patch_attention(q, k, v, head, scale=0.125, drop=mask)
    table = torch.zeros(3, n, width, dtype=dtype)
    triton.patch_attention(
        q, k, v, head, scale=0.125, causal=True, drop=mask, drop_for=mask, queries=table, query_source=head, keys=table,
        key_source=head, pattern=torch.zeros(1, n, n, dtype=dtype), pattern_source=head,
    )  # fmt: skip


def edge_scores(ones: bool, dtype):
    from mechvis.kernels.edge_scores import triton

    n, t, s, e, d, r = (1,) * 6 if ones else (2, 197, 144, 64, 768, 37)
    triton.edge_scores(*(torch.zeros(shape, dtype=dtype) for shape in ((n, t, s, e), (s, e, d), (n, t, r, d))))


def sparse_decode(ones: bool, dtype):
    from mechvis.kernels.sparse_decode import triton

    support, n, d = dictionary(ones)
    triton.sparse_decode(torch.zeros(len(support), dtype=dtype), support, torch.zeros(n, d, dtype=dtype))


def sparse_grad(ones: bool, dtype):
    from mechvis.kernels.sparse_grad import triton

    support, n, d = dictionary(ones)
    values, x, weight = (torch.zeros(shape, dtype=dtype) for shape in (len(support), (support.n_rows, d), (n, d)))
    triton.entry_products(x, weight, support)
    triton.segment_sum(values, x, support)
    triton.segment_sum(values, x, support, against=weight)
    triton.column_sums(values, support)


def topk(ones: bool, dtype):
    from mechvis.kernels.topk import triton

    values = torch.zeros((1, 1) if ones else (3, 12288), dtype=dtype)
    triton.topk(values, 1 if ones else 32)
    triton.topk(values, 1, among=torch.ones(values.shape[1], dtype=torch.bool))


def adam_rows(ones: bool, dtype):
    from mechvis.kernels.adam_rows import triton

    _, n, d = dictionary(ones)
    rows, *others = (torch.zeros(n, d, dtype=dtype) for _ in range(4))
    settings = {"lr": 0.1, "count": 1, "betas": (0.9, 0.999), "eps": 1e-8}
    triton.adam_rows(rows, *others, along=torch.zeros(n, dtype=dtype), factor=torch.ones(()), **settings)
    triton.adam_rows(rows, *others, along=None, factor=None, **settings)


def dictionary(ones: bool):
    """A support, how many latents there are, and the width of the stream."""
    from mechvis.kernels.support import Support

    n, k, d = (1, 1, 1) if ones else (12288, 32, 768)
    return Support.from_rows(torch.arange(k).expand(1 if ones else 3, k), n), n, d


if __name__ == "__main__":
    from mechvis.kernels import language

    assert not language.INTERPRETED
    for call in (patch_rows, expand_norm, patch_attention, edge_scores, sparse_decode, sparse_grad, topk, adam_rows):
        module = importlib.import_module(f"mechvis.kernels.{call.__name__}.triton")
        kernels = {name: thing for name, thing in vars(module).items() if type(thing).__name__ == "JITFunction"}
        for ones, dtypes in ((False, DTYPES), (True, DTYPES[:1])):
            for dtype in dtypes:
                for name in kernels.keys() - {"product", "key_of"}:  # called by kernels, never launched
                    vars(module)[name] = Recorder(kernels[name], f"{'ones' if ones else 'ViT-B/16'} {WORDS[dtype]}")
                call(ones, dtype)
