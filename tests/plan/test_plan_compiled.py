"""Programs compiled for chips that are not here, against pencil and paper. `make chips`"""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import NamedSharding, PartitionSpec
from plan_programs import BF16, Small, mesh_of, mlp, product, single, train_step

from unipixel_jax.core.accelerators import CHIPS, compile_mesh, usable
from unipixel_jax.core.mesh import MeshConfig, compiler_options, make_mesh
from unipixel_jax.core.sharding import bytes_per_device
from unipixel_jax.plan.hlo import read_costs
from unipixel_jax.plan.memory import ARGUMENTS, NEEDED, RESULTS, read_memory, refused_for_memory
from unipixel_jax.plan.topology import SHAPES, open_topology

pytestmark = pytest.mark.chips
SMALL = Small()
FSDP = ["v5e:4x4", "v5p:2x2x4", "v6e:4x4", "h100:8", "a100:8"]


def costs_of(compiled, topology, **options):
    return read_costs(compiled.as_text(), topology.slice_of, **options)


def sent(costs, *kinds, group=None):
    """Without the loss itself, a number that all chips add up."""
    return sum(c.bytes for c in costs.collectives if c.kind in kinds and c.bytes > 1000 and group in (None, c.group))


@pytest.mark.parametrize("chip", CHIPS)
def test_a_product_of_matrices(chip):
    compiled = single(compile_mesh(chip), lambda a, b: a @ b, (2048, 4096), (4096, 1024))
    costs = read_costs(compiled.as_text(), [0])
    assert costs.flops == product(2048, 4096, 1024) and not costs.kernels_without_flops
    least = BF16 * (2048 * 4096 + 4096 * 1024 + 2048 * 1024)
    assert least <= costs.bytes <= 1.5 * least


@pytest.mark.parametrize("name", ["v5e:4x4", "h100:8"])
def test_a_scan_costs_what_it_costs_unrolled(name):
    topology = open_topology(name)
    mesh = mesh_of(topology.devices, fsdp=len(topology.devices))
    four, twelve, unrolled = (costs_of(mlp(mesh, layers, unroll), topology) for layers, unroll in ((4, 1), (12, 1), (12, 12)))
    assert four.flops == 4 * product(2048 // len(topology.devices), 512, 512)
    assert twelve.flops == unrolled.flops == 3 * four.flops
    for costs, layers in ((four, 4), (twelve, 12), (unrolled, 12)):
        chips = len(topology.devices)
        assert sent(costs, "all-gather") == layers * 512 * 512 * BF16 * (chips - 1) / chips


@pytest.mark.parametrize("remat", [True, False])
@pytest.mark.parametrize("name", FSDP)
def test_a_train_step_with_divided_weights(name, remat):
    """Every weight is gathered forward and, where the forward pass is computed again, once more; its gradient is reduced, scattered or everywhere."""
    topology = open_topology(name)
    chips = len(topology.devices)
    costs = costs_of(train_step(mesh_of(topology.devices, fsdp=chips), SMALL, remat)[0], topology)
    assert costs.flops == pytest.approx(SMALL.flops(remat) / chips, rel=0.02) and not costs.kernels_without_flops
    gathered = sent(costs, "all-gather")
    if remat:
        assert gathered == SMALL.gathered(chips)
    else:
        assert gathered in (SMALL.gathered(chips), SMALL.gathered(chips) / 2)
    once = SMALL.gathered(chips) / 2
    assert sent(costs, "reduce-scatter") + sent(costs, "all-reduce") / 2 == pytest.approx(once)


@pytest.mark.parametrize("name", ["v5e:4x4", "v5p:2x2x4", "h100:8"])
def test_a_train_step_with_weights_divided_both_ways(name):
    """Pairs of chips add up what each computed with its half: after two products of a layer forward, one of these again, and backward before four products.

    Those are of the gradients for "up", and for q, k and v one by one. A pair's reduction sends the array once.
    """
    topology = open_topology(name)
    chips = len(topology.devices)
    costs = costs_of(train_step(mesh_of(topology.devices, fsdp=chips // 2, tensor=2), SMALL)[0], topology)
    assert costs.flops == pytest.approx(SMALL.flops() / chips, rel=0.02)
    activations = SMALL.rows // (chips // 2) * SMALL.tokens * SMALL.width * BF16
    assert sent(costs, "all-reduce", group=2) == 7 * SMALL.layers * activations
    gathered = SMALL.gathered(chips // 2, others=2)
    assert sent(costs, "reduce-scatter", group=chips // 2) + sent(costs, "all-reduce", group=chips // 2) / 2 == gathered / 2
    assert sent(costs, "all-gather", group=chips // 2) == gathered


def test_weights_divided_in_a_slice_and_repeated_in_another():
    topology = open_topology("2*v5e:4x4")
    costs = costs_of(train_step(mesh_of(topology.devices, data=2, fsdp=16), Small(rows=32))[0], topology)
    assert costs.flops == pytest.approx(Small(rows=32).flops() / 32, rel=0.02)
    assert sent(costs, "all-gather") == SMALL.gathered(16)
    assert sent(costs, "reduce-scatter") == SMALL.gathered(16) / 2
    shards = SMALL.layers * SMALL.weights * BF16 / 16
    assert costs.sent_between_slices == pytest.approx(shards, rel=1e-3)


@pytest.mark.parametrize("chip", ["v5e", "v5p", "h100"])
def test_convolutions(chip):
    """Rows of 32 of which each meets three of the kernel's, but the two at the border."""

    def convolve(x, w):
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    compiled = single(compile_mesh(chip), convolve, (8, 32, 32, 128), (3, 3, 128, 256))
    assert read_costs(compiled.as_text(), [0]).flops == product(8, 128, 256, 94, 94)


@pytest.mark.parametrize("chip", ["v5e", "h100"])
def test_products_in_batches(chip):
    compiled = single(compile_mesh(chip), lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (32, 256, 128), (32, 128, 256))
    assert read_costs(compiled.as_text(), [0]).flops == product(32, 256, 128, 256)


def test_kernels_say_what_they_cost():
    def kernel(estimate):
        def body(a, b, out):
            out[...] = jnp.dot(a[...], b[...], preferred_element_type=jnp.float32).astype(jnp.bfloat16)

        return lambda a, b: pl.pallas_call(body, out_shape=jax.ShapeDtypeStruct((512, 512), jnp.bfloat16), cost_estimate=estimate)(a, b)

    mesh = compile_mesh("v5e")
    said = pl.CostEstimate(flops=product(512, 512, 512), bytes_accessed=3 * 512 * 512 * BF16, transcendentals=0)
    told, silent = (read_costs(single(mesh, kernel(estimate), (512, 512), (512, 512)).as_text(), [0]) for estimate in (said, None))
    assert (told.flops, told.bytes, told.kernels_without_flops) == (said.flops, said.bytes_accessed, ())
    assert (silent.flops, silent.kernels_without_flops) == (0, ("tpu_custom_call",))


@pytest.mark.parametrize("chip", ["v5e", "h100"])
def test_a_branch_and_loops(chip):
    mesh, size, one = compile_mesh(chip), (256, 256), product(256, 256, 256)
    counted = single(mesh, lambda a: jax.lax.fori_loop(3, 11, lambda i, s: s @ s, a), size)
    assert read_costs(counted.as_text(), [0]).flops == 8 * one
    either = single(mesh, lambda a: jax.lax.cond(a[0, 0] > 0, lambda s: s @ s, lambda s: s @ s @ s @ s, a), size)
    assert read_costs(either.as_text(), [0]).flops == 3 * one
    until = single(mesh, lambda a: jax.lax.while_loop(lambda s: jnp.sum(s) < 1000, lambda s: s @ s, a), size)
    assert read_costs(until.as_text(), [0], unknown_trips=5).flops == 5 * one


@pytest.mark.parametrize("name", ["v5e:2x2", "h100:4"])
def test_a_change_of_the_divided_dimension(name):
    topology = open_topology(name)
    mesh = mesh_of(topology.devices, x=4)
    rows, columns = (jax.NamedSharding(mesh, jax.P(*spec)) for spec in (("x",), (None, "x")))

    def turn(x):
        return jax.lax.with_sharding_constraint(jax.lax.with_sharding_constraint(x, rows) * 2, columns)

    costs = costs_of(single(mesh, turn, (1024, 1024)), topology)
    assert [(c.kind, c.group, c.bytes) for c in costs.collectives] == [("all-to-all", 4, 1024 * 1024 // 4 * BF16 * 3 / 4)]


@pytest.mark.parametrize(("name", "hosts"), [("v5e:1x1", 1), ("v5e-8", 1), ("v5e-16", 4), ("v5p-16", 2), ("2*v6e:4x4", 8), ("h100:2x8", 2), ("a100:8", 1)])
def test_topologies(name, hosts):
    topology = open_topology(name)
    assert topology.hosts == hosts and len(topology.slice_of) == len(topology.devices)
    found = [getattr(device, "slice_index", None) or 0 for device in topology.devices]
    if name.startswith("2*"):
        assert found == list(topology.slice_of)
    assert CHIPS[name.removeprefix("2*").split(":")[0].split("-")[0]] == topology.chip


@pytest.mark.parametrize("chip", SHAPES)
def test_the_compiler_knows_every_shape(chip):
    for shape in SHAPES[chip]:
        topology = open_topology(f"{chip}:{shape}")
        sizes = [int(n) for n in shape.split("x")]
        assert topology.slices == 1 and len({tuple(device.coords) for device in topology.devices}) == len(topology.devices)
        assert max(device.coords for device in topology.devices)[: len(sizes)] == [n - 1 for n in sizes]


@pytest.mark.parametrize("name", ["v5e:2x2", "h100:4"])
def test_memory(name):
    topology = open_topology(name)
    compiled, params = train_step(mesh_of(topology.devices, fsdp=4), SMALL)
    held = bytes_per_device(params)
    assert held == SMALL.layers * SMALL.weights * BF16 / 4
    memory = read_memory(compiled, {"parameters": held}, topology.chip)
    assert memory.parts["parameters"] == held and memory.fits
    assert memory.parts[ARGUMENTS] == SMALL.rows * SMALL.tokens * SMALL.width * BF16 / 4
    assert memory.parts[RESULTS] < 10_000  # the loss: the new weights take the place of the donated ones
    found = compiled.memory_analysis()
    total = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes + found.temp_size_in_bytes
    assert memory.total == total + found.generated_code_size_in_bytes


@pytest.mark.parametrize("chip", SHAPES)
def test_what_the_compiler_refuses(chip):
    """It leaves programs what ``usable`` says."""
    with pytest.raises(jax.errors.JaxRuntimeError) as refused:
        single(compile_mesh(chip), lambda x: x + 1, (60 * 2**20, 1024))
    memory = refused_for_memory(refused.value)
    assert memory.parts == {NEEDED: pytest.approx(240 * 2**30, rel=0.01)} and not memory.fits
    assert memory.capacity == usable(CHIPS[chip])


def test_what_does_not_fit_a_gpu_compiles_all_the_same():
    memory = read_memory(single(compile_mesh("h100"), lambda x: x + 1, (60 * 2**20, 1024)), {}, CHIPS["h100"])
    assert not memory.fits


@pytest.mark.parametrize("name", ["v5e:8x8", "v5p:4x4x4"])
def test_meshes_may_split_the_axes_of_a_pod(name):
    mesh = make_mesh(MeshConfig("fsdp", context=4), open_topology(name).devices)
    assert dict(mesh.shape) == {"data": 1, "fsdp": len(open_topology(name).devices) // 4, "context": 4, "tensor": 1}


def test_the_compiler_takes_what_it_is_handed():
    """An option that it does not know is an error."""
    mesh = compile_mesh("v5e")
    options = compiler_options(mesh)
    assert options
    a = jax.ShapeDtypeStruct((128, 128), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    jax.jit(lambda a: a @ a, compiler_options=options).lower(a).compile()
    assert compiler_options(jax.make_mesh((1,), ("x",))) is None
