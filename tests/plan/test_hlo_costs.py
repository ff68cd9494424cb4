"""Costs read from the texts of compiled programs: recorded texts (record_hlo.py), and lines written here for each form that XLA prints."""

from pathlib import Path

import numpy as np
import pytest

from unipixel_jax.errors import UserError
from unipixel_jax.plan.hlo import read_costs
from unipixel_jax.plan.hlo_collectives import replica_groups
from unipixel_jax.plan.hlo_flops import _valid
from unipixel_jax.plan.hlo_text import parse

RECORDED = Path(__file__).parent / "hlo"
LAYERS, WIDTH, ROWS = 6, 512, 2048
WEIGHT = 2 * WIDTH * WIDTH  # bytes of a layer


def recorded(name, slice_of):
    return read_costs((RECORDED / f"{name}.txt").read_text(encoding="utf-8"), slice_of)


def module(*lines, others="", partitions=4, layout=""):
    """An entry computation of these lines, in a module for so many chips."""
    body = "\n".join(f"  {line}" for line in lines)
    return f"HloModule m, entry_computation_layout={{{layout}}}, num_partitions={partitions}\n\n{others}\nENTRY %main (p: f32[]) -> f32[] {{\n{body}\n}}\n"


def only(text, slice_of=(0, 0, 0, 0), **options):
    (operation,) = read_costs(text, slice_of, **options).operations
    return operation


def found(costs):
    return {(c.kind, c.group, c.slices): (c.count, c.bytes) for c in costs.collectives}


def test_a_scan_counts_each_layer_and_reads_one_slice_of_the_stacked_weights():
    costs = recorded("v5e_forward", [0] * 16)
    assert costs.flops == LAYERS * 2 * (ROWS // 16) * WIDTH**2
    assert found(costs) == {("all-gather", 16, 1): (LAYERS, LAYERS * WEIGHT * 15 / 16)}
    (slices,) = (o for o in costs.operations if o.op_name.endswith("dynamic_slice"))
    assert slices.count == LAYERS and slices.bytes == pytest.approx(LAYERS * WEIGHT / 16, rel=1e-3)


def test_gradients_of_a_scan_are_gathered_forward_and_scattered_backward():
    """The TPU compiler writes the scattering as an all-reduce with a slice, in a fusion called all-reduce-scatter."""
    text = (RECORDED / "v5p_gradient.txt").read_text(encoding="utf-8")
    assert " all-reduce(" in text and " reduce-scatter(" not in text
    costs = read_costs(text, [0] * 4)
    assert costs.flops == LAYERS * 3 * 2 * (ROWS // 4) * WIDTH**2
    sent = LAYERS * WEIGHT * 3 / 4
    assert found(costs) == {("all-gather", 4, 1): (LAYERS, sent), ("reduce-scatter", 4, 1): (LAYERS, sent)}
    assert costs.sent == 2 * sent and costs.sent_between_slices == 0


def test_tpu_slices_reduce_their_shards_through_the_hosts():
    costs = recorded("v5e_slices_gradient", [0] * 4 + [1] * 4)
    assert costs.flops == LAYERS * 3 * 2 * (ROWS // 8) * WIDTH**2
    sent = LAYERS * WEIGHT * 3 / 4
    between = LAYERS * WEIGHT / 4  # twice half of a shard
    expected = {("all-gather", 4, 1): (LAYERS, sent), ("reduce-scatter", 4, 1): (LAYERS, sent), ("all-reduce", 2, 2): (LAYERS, between)}
    assert found(costs) == expected
    assert costs.sent == 2 * sent and costs.sent_between_slices == between


def test_gpus_of_two_hosts():
    costs = recorded("h100_hosts_gradient", [0] * 4 + [1] * 4)
    assert costs.flops == LAYERS * 3 * 2 * (ROWS // 8) * WIDTH**2
    gathered, reduced = LAYERS * WEIGHT * 3 / 4, LAYERS * WEIGHT * 2 * 7 / 8
    assert found(costs) == {("all-gather", 4, 1): (LAYERS, gathered), ("all-reduce", 8, 2): (LAYERS, reduced)}
    # scattered inside the host, of a quarter twice half goes between the two
    assert costs.sent_between_slices == pytest.approx(LAYERS * WEIGHT / 4)


def test_the_largest_name_their_line_of_the_model():
    costs = recorded("h100_hosts_gradient", [0] * 4 + [1] * 4)
    sending, moving = costs.largest(2)
    assert [o.collective.kind for o in sending] == ["all-reduce", "all-gather"]
    assert sending[1].op_name == "jit(grad)/jvp()/while/body/jit(dynamic_index_in_dim)/squeeze"
    assert len(moving) == 2 and moving[0].bytes == max(o.bytes for o in costs.operations)
    assert sum(o.bytes for o in costs.operations) == costs.bytes


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("{{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("{}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("[2,4]<=[4,2]T(1,0)", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("mesh['a'=4,'b'=2] {'a'}", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("mesh['a'=4,'b'=2] {'a','b'}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("mesh['a'=8] {'a':(1)2}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("mesh['a'=8] {'a':(2)4}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("mesh['a'=2,'b'=2], device_ids=(3,2,1,0) {'b'}", [[3, 2], [1, 0]]),
    ],
)
def test_groups(written, expected):
    assert replica_groups(f", channel_id=1, replica_groups={written}, dimensions={{0}}", 8) == expected


KINDS = {
    "all-gather": ("f32[16]", "all-gather(%p)", 3 * 4 * 4),
    "all-gather-start": ("(f32[4], f32[16])", "all-gather-start(%p)", 3 * 4 * 4),
    "all-reduce": ("f32[4]", "all-reduce(%p)", 2 * 3 / 4 * 4 * 4),
    "reduce-scatter": ("f32[1]", "reduce-scatter(%p)", 3 / 4 * 4 * 4),
    "all-to-all": ("f32[4]", "all-to-all(%p)", 3 / 4 * 4 * 4),
}


@pytest.mark.parametrize("name", KINDS)
def test_bytes_of_each_kind(name):
    shape, call, expected = KINDS[name]
    text = module("%p = f32[4]{0} parameter(0)", f"ROOT %c = {shape} {call}, replica_groups=[1,4]<=[4], dimensions={{0}}, to_apply=%add")
    operation = only(text)
    assert operation.collective.kind == name.removesuffix("-start")
    assert operation.collective.bytes == expected and operation.collective.group == 4
    assert not operation.collective.crosses_slices
    assert only(text, (0, 0, 1, 1)).collective.crosses_slices


@pytest.mark.parametrize(("kind", "share"), [("all-gather", 1 / 3), ("all-reduce", 1 / 3), ("all-to-all", 2 / 3)])
def test_what_leaves_the_slice(kind, share):
    """With four chips in two slices, a chip fetches one of three shards from the other slice, and has two of its three partners there."""
    shape, call, _ = KINDS[kind]
    text = module("%p = f32[4]{0} parameter(0)", f"ROOT %c = {shape} {call}, replica_groups=[1,4]<=[4], dimensions={{0}}")
    sent = only(text, (0, 0, 1, 1)).collective
    assert sent.bytes_between_slices == pytest.approx(sent.bytes * share)


def test_a_permutation_sends_its_array():
    text = module("%p = f32[8]{0} parameter(0)", "ROOT %c = f32[8]{0} collective-permute(%p), channel_id=1, source_target_pairs={{0,1},{1,0},{2,3},{3,2}}")
    sent = only(text).collective
    assert (sent.kind, sent.group, sent.bytes, sent.slices) == ("collective-permute", 2, 32, 1)
    assert only(text, (0, 1, 0, 1)).collective.bytes_between_slices == 32
    nobody = text.replace("{0,1},{1,0},{2,3},{3,2}", "{0,0},{1,1}")
    assert only(nobody).collective is None


def test_a_collective_of_one_chip_sends_nothing():
    text = module("%p = f32[8]{0} parameter(0)", "ROOT %c = f32[8]{0} all-reduce(%p), replica_groups={{0},{1},{2},{3}}, to_apply=%add")
    assert read_costs(text, [0] * 4).collectives == ()


CHAIN = """
%start (a: bf16[8]) -> (bf16[8], bf16[32], u32[]) {
  %a = bf16[8]{0} parameter(0)
  %g.1 = bf16[32]{0} all-gather(%a), channel_id=5, replica_groups=[1,4]<=[4], dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %s = (bf16[8]{0}, bf16[32]{0:T(128)S(1)}, u32[]{:S(2)}) custom-call(%g.1), custom_call_target="AsyncCollectiveStart"
}

%end (a: bf16[8], b: bf16[32]) -> bf16[32] {
  %a = bf16[8]{0} parameter(0)
  %b = bf16[32]{0:T(128)S(1)} parameter(1)
  %g.2 = bf16[32]{0} all-gather(%a), channel_id=5, replica_groups=[1,4]<=[4], dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %d = bf16[32]{0:T(128)S(1)} custom-call(%a, %b, %g.2), custom_call_target="AsyncCollectiveDone"
}
"""


def test_a_collective_behind_other_work_counts_once():
    text = module(
        "%p = bf16[8]{0:T(128)} parameter(0)",
        "%f.1 = (bf16[8]{0:T(128)}, bf16[32]{0:T(128)S(1)}, u32[]{:S(2)}) fusion(%p), kind=kCustom, calls=%start",
        "%x = bf16[8]{0:T(128)} get-tuple-element(%f.1), index=0",
        "%y = bf16[32]{0:T(128)S(1)} get-tuple-element(%f.1), index=1",
        "ROOT %f.2 = bf16[32]{0:T(128)S(1)} fusion(%x, %y), kind=kCustom, calls=%end",
        others=CHAIN,
        layout="(bf16[8]{0:T(128)})->bf16[32]{0:T(128)S(1)}",
    )
    costs = read_costs(text, [0] * 4)
    assert found(costs) == {("all-gather", 4, 1): (1, 3 * 16)}
    assert costs.bytes == 16  # the result lies in VMEM


LOOP = """
%body (s: (s32[], f32[4,4])) -> (s32[], f32[4,4]) {
  %s = (s32[], f32[4,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[4,4]{1,0} get-tuple-element(%s), index=1
  %d = f32[4,4]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %t = (s32[], f32[4,4]{1,0}) tuple(%i, %d)
}

%until (s: (s32[], f32[4,4])) -> pred[] {
  %s = (s32[], f32[4,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %n = s32[] constant(7)
  ROOT %c = pred[] compare(%i, %n), direction=LT
}

%fused (a: s32[], b: s32[]) -> pred[] {
  %a = s32[] parameter(0)
  %b = s32[] parameter(1)
  ROOT %c = pred[] compare(%a, %b), direction=GE
}

%until_fused (s: (s32[], f32[4,4])) -> pred[] {
  %s = (s32[], f32[4,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %n = s32[] constant(7)
  ROOT %f = pred[] fusion(%n, %i), kind=kLoop, calls=%fused
}

%until_small (s: (s32[], f32[4,4])) -> pred[] {
  %s = (s32[], f32[4,4]{1,0}) parameter(0)
  %x = f32[4,4]{1,0} get-tuple-element(%s), index=1
  %sum = f32[] reduce(%x), dimensions={0,1}, to_apply=%add
  %n = f32[] constant(7)
  ROOT %c = pred[] compare(%sum, %n), direction=LT
}
"""


def loop(condition, first=0, notes=""):
    return module(
        f"%zero = s32[] constant({first})",
        "%p = f32[4,4]{1,0} parameter(0)",
        "%t = (s32[], f32[4,4]{1,0}) tuple(%zero, %p)",
        f'ROOT %w = (s32[], f32[4,4]{{1,0}}) while(%t), condition=%{condition}, body=%body, metadata={{op_name="jit(f)/while"}}{notes}',
        others=LOOP,
    )


@pytest.mark.parametrize(
    ("text", "trips"),
    [
        (loop("until"), 7),
        (loop("until", first=3), 4),
        (loop("until_fused"), 8),
        (loop("until_small", notes=', backend_config={"known_trip_count":{"n":"5"}}'), 5),
    ],
)
def test_how_often_a_loop_runs(text, trips):
    assert read_costs(text, [0] * 4).flops == trips * 2 * 4**3


def test_a_loop_without_a_known_end():
    with pytest.raises(UserError, match=r"loop w \(jit\(f\)/while\) runs until its data say so"):
        read_costs(loop("until_small"), [0] * 4)
    assert read_costs(loop("until_small"), [0] * 4, unknown_trips=3).flops == 3 * 2 * 4**3


BRANCHES = """
%one (x: f32[4,4]) -> f32[4,4] {
  %x = f32[4,4]{1,0} parameter(0)
  ROOT %d = f32[4,4]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%two (x: f32[4,4]) -> f32[4,4] {
  %x = f32[4,4]{1,0} parameter(0)
  %d = f32[4,4]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %e = f32[4,4]{1,0} dot(%d, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""


@pytest.mark.parametrize("branches", ["branch_computations={%one, %two}", "true_computation=%two, false_computation=%one"])
def test_the_most_expensive_branch_counts(branches):
    text = module(
        "%i = s32[] constant(0)", "%p = f32[4,4]{1,0} parameter(0)", f"ROOT %c = f32[4,4]{{1,0}} conditional(%i, %p, %p), {branches}", others=BRANCHES
    )
    assert read_costs(text, [0] * 4).flops == 2 * 2 * 4**3


@pytest.mark.parametrize("call", ["call(%p), to_apply=%two", "async-start(%p), calls=%two", "fusion(%p), kind=kOutput, calls=%two"])
def test_calls_are_followed(call):
    text = module("%p = f32[4,4]{1,0} parameter(0)", f"ROOT %c = f32[4,4]{{1,0}} {call}", others=BRANCHES)
    assert read_costs(text, [0] * 4).flops == 2 * 2 * 4**3


@pytest.mark.parametrize(
    ("image", "kernel", "stride", "pad", "base", "holes"),
    [(8, 3, 1, 1, 1, 1), (8, 3, 2, 1, 1, 1), (8, 2, 1, 1, 2, 1), (9, 3, 2, 2, 1, 2), (16, 16, 15, 0, 16, 1), (7, 7, 1, 6, 1, 1), (6, 3, 1, 2, 3, 2)],
)
def test_places_of_a_convolution_that_meet_an_element(image, kernel, stride, pad, base, holes):
    """Against the same sum in full."""
    spread = np.zeros((image - 1) * base + 1 + 2 * pad)
    spread[pad : pad + (image - 1) * base + 1 : base] = 1
    size = (len(spread) - (kernel - 1) * holes - 1) // stride + 1
    expected = sum(spread[o * stride + k * holes] for o in range(size) for k in range(kernel))
    assert _valid(image, kernel, size, stride, pad, base, holes) == expected


IMAGES = "%a = f32[2,8,8,4]{3,2,1,0} parameter(0)", "%b = f32[3,3,4,16]{3,2,1,0} parameter(1)", "%g = f32[2,8,8,16]{3,2,1,0} parameter(2)"
# 8 rows of which each sees 3 of the kernel's rows, but for the first and the last, and columns alike
CONVOLUTION = 2 * 2 * 16 * 4 * 22 * 22


def custom(target, lines, result, operands, rest=""):
    return module(*lines, f'ROOT %c = ({result}, s8[100]{{0}}) custom-call({operands}), custom_call_target="{target}"{rest}')


def test_products_of_cublas():
    rest = ', backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"],"rhs_contracting_dimensions":["1"]}}}'
    lines = "%a = bf16[8,64,32]{2,1,0} parameter(0)", "%b = bf16[8,32,128]{2,1,0} parameter(1)"
    for target in ("__cublas$gemm", "__cublas$lt$matmul"):
        assert only(custom(target, lines, "bf16[8,64,128]{2,1,0}", "%a, %b", rest)).flops == 2 * 8 * 64 * 32 * 128


@pytest.mark.parametrize(
    ("target", "result", "operands"),
    [
        ("__cudnn$convForward", "f32[2,8,8,16]{3,2,1,0}", "%a, %b"),
        ("__cudnn$convBackwardInput", "f32[2,8,8,4]{3,2,1,0}", "%g, %b"),
        ("__cudnn$convBackwardFilter", "f32[3,3,4,16]{3,2,1,0}", "%a, %g"),
    ],
)
def test_convolutions_of_cudnn(target, result, operands):
    rest = ", window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f"
    assert only(custom(target, IMAGES, result, operands, rest)).flops == CONVOLUTION


@pytest.mark.parametrize(("target", "mask", "products"), [("Softmax", "NO_MASK", 2), ("Softmax", "CAUSAL", 1), ("SoftmaxBackward", "NO_MASK", 5)])
def test_attention_of_cudnn(target, mask, products):
    scores = '"intermediate_tensor_shape":{"element_type":"BF16","dimensions":["2","4","64","32"]}'
    rest = f', backend_config={{"cudnn_fmha_backend_config":{{"mask_type":"{mask}",{scores}}}}}'
    lines = "%q = bf16[2,64,4,16]{3,2,1,0} parameter(0)", "%k = bf16[2,32,4,16]{3,2,1,0} parameter(1)"
    text = custom(f"__cudnn$fmha{target}", lines, "bf16[2,64,4,16]{3,2,1,0}", "%q, %k, %k", rest)
    assert only(text).flops == products * 2 * 2 * 4 * 64 * 32 * 16


def test_kernels_say_what_they_cost_or_are_named():
    estimate = ', backend_config={"custom_call_config":{"body":"x","cost_estimate":{"flops":"1000","transcendentals":"0","bytes_accessed":"64"}}}'
    lines = ("%a = f32[8]{0} parameter(0)",)
    told = read_costs(custom("tpu_custom_call", lines, "f32[8]{0}", "%a", estimate), [0] * 4)
    assert (told.flops, told.bytes, told.kernels_without_flops) == (1000, 64, ())
    silent = read_costs(custom("tpu_custom_call", lines, "f32[8]{0}", "%a"), [0] * 4)
    assert (silent.flops, silent.bytes, silent.kernels_without_flops) == (0, 32 + 32 + 100, ("tpu_custom_call",))


def test_a_silent_kernel_in_a_fusion_is_named():
    inner = '%f (a: f32[8]) -> f32[8] {\n  %a = f32[8]{0} parameter(0)\n  ROOT %k = f32[8]{0} custom-call(%a), custom_call_target="mystery"\n}\n'
    text = module("%p = f32[8]{0} parameter(0)", "ROOT %r = f32[8]{0} fusion(%p), kind=kCustom, calls=%f", others=inner)
    assert read_costs(text, [0]).kernels_without_flops == ("mystery",)


FUSED = """
%slice_of_stack (a: f32[10,8], i: s32[]) -> f32[8] {
  %a = f32[10,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %z = s32[] constant(0)
  %c = bf16[10,8]{1,0} convert(%a)
  %s = bf16[1,8]{1,0} dynamic-slice(%c, %i, %z), dynamic_slice_sizes={1,8}
  ROOT %r = bf16[8]{0} bitcast(%s)
}

%update (a: f32[10,8], i: s32[], u: f32[8]) -> f32[10,8] {
  %a = f32[10,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %u = f32[8]{0} parameter(2)
  %z = s32[] constant(0)
  %r = f32[1,8]{1,0} bitcast(%u)
  ROOT %d = f32[10,8]{1,0} dynamic-update-slice(%a, %r, %i, %z)
}

%sum_of_all (a: f32[10,8]) -> f32[8] {
  %a = f32[10,8]{1,0} parameter(0)
  %s = f32[1,8]{1,0} slice(%a), slice={[0:1], [0:8]}
  ROOT %r = f32[8]{0} reduce(%a, %s), dimensions={0}, to_apply=%add
}
"""
ARGUMENTS = "%p = f32[10,8]{1,0} parameter(0)", "%i = s32[] parameter(1)", "%u = f32[8]{0} parameter(2)"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("bf16[8]{0} fusion(%p, %i), kind=kLoop, calls=%slice_of_stack", 32 + 4 + 16),
        ("f32[10,8]{1,0} fusion(%p, %i, %u), kind=kLoop, calls=%update", 4 + 32 + 32),
        ("f32[8]{0} fusion(%p), kind=kLoop, calls=%sum_of_all", 320 + 32),
        ("f32[10,8]{1,0} dynamic-update-slice(%p, %u, %i, %i)", 32 + 32),
        ("f32[1,8]{1,0} dynamic-slice(%p, %i, %i), dynamic_slice_sizes={1,8}", 32 + 32),
        ("f32[10,8]{1,0} add(%p, %p)", 3 * 320),
        ("f32[80]{0} bitcast(%p)", 0),
        ("(f32[10,8]{1,0:T(8,128)S(1)}, f32[10,8]{1,0}, u32[]{:S(2)}) copy-start(%p)", 320),
        ("(f32[10,8]{1,0:T(8,128)S(5)}, f32[10,8]{1,0}, u32[]{:S(2)}) copy-start(%p)", 320),
        ("((f32[10,8]{1,0}), f32[2,8]{1,0}, u32[]{:S(2)}) slice-start(%p), slice={[0:2], [0:8]}", 2 * 64),
    ],
)
def test_bytes_of_memory(line, expected):
    text = module(*ARGUMENTS, f"ROOT %r = {line}", others=FUSED, layout="(f32[10,8]{1,0:T(8,128)})->f32[10,8]{1,0:T(8,128)}")
    assert read_costs(text, [0] * 4).bytes == expected


def test_types_and_literals():
    parsed = parse(module("%p = (f8e4m3fn[4]{0}, s4[4]{0}, pred[], token[], f32[<=8]{0}) parameter(0)", "ROOT %c = s32[2]{0} constant({1, 2})"))
    assert [a.nbytes for a in parsed.computations["main"].instructions["p"].arrays] == [4, 2, 1, 0, 32]


def test_what_is_no_module():
    with pytest.raises(UserError, match="no ENTRY computation"):
        read_costs("hello", [0])


def test_a_kernel_for_gpus_says_its_costs_in_its_metadata():
    told = r'serialized_metadata = "{\22flops\22: \22343932928\22, \22bytes_accessed\22: \2221495808\22}"'
    call = 'ROOT %k = f32[4]{0} custom-call(%p), custom_call_target="__gpu$xla.gpu.triton"'
    text = module("%p = f32[4]{0} parameter(0)", f"{call}, backend_config={{grid_x = 8 : i32, {told}}}")
    operation = only(text)
    assert (operation.flops, operation.bytes, operation.told) == (343932928, 21495808, True)
    assert not only(text.replace(told, "num_warps = 4 : i32")).told
    # a kernel on splits of a cache, of which the data say how many hold something
    splits = text.replace(r"\22flops\22", r"\22flops of a split\22").replace(r"\22bytes_accessed\22", r"\22bytes_accessed of a split\22")
    for trips, count in ((None, 1), (8, 8)):
        costs = read_costs(splits, [0] * 4, unknown_trips=trips)
        assert (costs.flops, costs.bytes) == (count * 343932928, count * 21495808)


def test_an_array_in_another_tiling_is_read_as_far_as_it_is_sliced():
    """A TPU's compiler gives int8 that is cast in a fusion another tiling, by a fusion inside that aliases its operand."""
    inside = """
%tiling (a: s8[10,8]) -> s8[10,8] {
  %a = s8[10,8]{1,0} parameter(0)
  ROOT %c = s8[10,8]{1,0} copy(%a)
}

%cast_slice (a: s8[10,8], i: s32[]) -> f32[1,8] {
  %a = s8[10,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %z = s32[] constant(0)
  %t = s8[10,8]{1,0} fusion(%a), kind=kLoop, output_to_operand_aliasing={{}: (0, {})}, calls=%tiling
  %s = s8[1,8]{1,0} dynamic-slice(%t, %i, %z), dynamic_slice_sizes={1,8}
  ROOT %r = f32[1,8]{1,0} convert(%s)
}
"""
    lines = "%p = s8[10,8]{1,0} parameter(0)", "%i = s32[] parameter(1)", "ROOT %o = f32[1,8]{1,0} fusion(%p, %i), kind=kLoop, calls=%cast_slice"
    found = only(module(*lines, others=inside)).bytes
    assert found == 8 + 4 + 8 * 4
