"""Records and reports: by hand, and what reads them."""

import dataclasses
import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

import sae
from sae.inputs import Units
from sae.trainer import diagnostics, speed
from sae.trainer.loss import Parts
from sae.trainer.speed import Rates
from tests.sae import examples
from tests.sae.trainer.dictionaries import known_dictionary
from tests.sae.trainer.stepping import begun, stepped


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    x, _, _ = known_dictionary(6000, features=256, dimensions=64)
    return examples.make_store(tmp_path_factory.mktemp("stores") / "store", {"x": x}, segment_rows=2000)


def test_a_record_by_hand():
    c = sae.short_run("s", 32, 10, batch_size=64, l0_target=4.0)
    c = c.replace(dead_tokens=64, threshold_init=0.2, encoder_init=1.0)
    units = {"s": Units(jnp.zeros(8), jnp.float32(1.0))}
    s = begun(c, 8, 8)
    s = s._replace(params=s.params._replace(threshold=s.params.threshold.at[5].set(1e6)))
    seen = {"l0": [], "errors": [], "y": [], "fired": []}
    for i in range(3):
        x = 0.3 * jax.random.normal(jax.random.key(i), (64, 8))
        p = jax.tree.map(np.asarray, s.params)
        z = (np.asarray(x) - p.b_dec) @ p.W_enc + p.b_enc
        f = z * (z > p.threshold)
        seen["l0"].append((f > 0).sum(axis=1))
        seen["fired"].append((f > 0).mean(axis=0))
        seen["errors"].append(np.square(f @ p.W_dec + p.b_dec - x).sum(axis=1))
        seen["y"].append(np.asarray(x))
        s = stepped(s, {"s": x}, units, c)
    record = jax.device_get(diagnostics.summary(s, Parts.of(c), c.sizes))
    l0, errors, y = (np.concatenate(seen[name]) for name in ("l0", "errors", "y"))
    assert record["l0"] == pytest.approx(l0.mean(), rel=1e-5)
    assert record["reconstruction"] == pytest.approx(errors.mean(), rel=1e-4)
    assert record["fvu"] == pytest.approx(errors.sum() / np.square(y - y.mean(axis=0)).sum(), rel=1e-3)
    quantiles = np.mean([np.quantile(each, diagnostics.QUANTILES) for each in seen["l0"]], axis=0)
    np.testing.assert_allclose(record["l0_quantiles"], quantiles, rtol=1e-4)
    # All 32 latents, in bins of their frequency over the three batches; number 5 has never fired.
    frequency = np.mean(seen["fired"], axis=0)
    edges = [0, *diagnostics.DENSITY_EDGES, 2]
    np.testing.assert_array_equal(record["density"], np.histogram(frequency, edges)[0])
    assert record["density"].sum() == 32 and record["density"][0] >= 1
    # Silent for the last 64 tokens, one batch; where the config asks for more than half of the 192, for two batches.
    assert (record["dead"], record["dead_tokens"]) == ((seen["fired"][-1] == 0).sum(), 64)
    longer = jax.device_get(diagnostics.summary(s, Parts.of(c), dataclasses.replace(c, dead_tokens=10**7).sizes))
    assert (longer["dead"], longer["dead_tokens"]) == ((np.add(*seen["fired"][-2:]) == 0).sum(), 128)
    assert 1 <= longer["dead"] < 32
    theta = np.asarray(s.params.threshold)
    assert record["threshold_mean"] == pytest.approx(theta.mean())
    assert set(record["gradients"]) == {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"}
    assert all(norm > 0 for norm in record["gradients"].values())
    assert float(diagnostics.summary(diagnostics.emptied(s), Parts.of(c), c.sizes)["l0"]) == 0.0


def events(file):
    """Of a TensorBoard file: a length, a checksum of it, the event, a checksum of that; and so on."""
    data, at = file.read_bytes(), 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        event = event_pb2.Event()
        event.ParseFromString(data[at + 12 : at + 12 + length])
        yield event
        at += 12 + length + 4


def hyperparameters(file):
    """What a TensorBoard file says of its run's config: in the metadata of the session's start."""
    metadata = [
        value.metadata.plugin_data.content
        for event in events(file)
        for value in event.summary.value
        if value.tag == "_hparams_/session_start_info"
    ]
    (content,) = metadata
    values = HParamsPluginData.FromString(content).session_start_info.hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in values.items()}


def test_tensorboard_files(small, one_device, tmp_path, monkeypatch):
    # Measured, the peak depends on what else the machine does at that moment.
    monkeypatch.setattr(speed.devices, "peak_flops", lambda device: 1e12)
    runs = [sae.short_run("x", 64, 31, batch_size=128, l0_target=target) for target in (4.0, 8.0)]
    _, history = sae.train(runs, small, one_device, log_every=10, reports=[sae.TensorBoard(tmp_path)])
    for number, name in enumerate(("target_l0_4", "target_l0_8")):
        (file,) = (tmp_path / "x" / "width_64" / name).iterdir()
        parameters = hyperparameters(file)
        assert parameters["l0_target"] == runs[number].l0_target and parameters["site"] == "x"
        assert (
            parameters["batch_size"] == 128
            and parameters["centre"] is True
            and parameters["coefficient_warmup"] == "1/4"
        )
        scalars = {
            (value.tag, event.step): value.simple_value
            for event in events(file)
            for value in event.summary.value
            if value.HasField("simple_value")
        }
        mine = [record for record in history if record["run"] == number]
        assert [record["step"] for record in mine] == [0, 10, 20, 30]
        for record in mine:
            for name in ("loss", "l0", "fvu", "window", "dead"):
                assert scalars[name, record["step"]] == pytest.approx(record[name], rel=1e-6)
            assert scalars["gradients/W_enc", record["step"]] == pytest.approx(record["gradients"]["W_enc"], rel=1e-6)
            assert ("l0_quantiles/50", record["step"]) in scalars
        tokens_per_second, share = scalars["speed/tokens_per_second", 30], scalars["speed/share_of_peak", 30]
        assert tokens_per_second > 0
        products = 2 * 10 * 64 * 64  # of both runs, for a token: five products of 64 x 64
        assert products < share * 1e12 / tokens_per_second < 1.5 * products


def test_weights_and_biases(monkeypatch):
    logged = []
    run = types.SimpleNamespace(log=lambda numbers, step: logged.append((step, numbers)), finish=lambda: None)
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "wandb", None)
        with pytest.raises(ValueError, match="wandb is not installed: pip install"):
            sae.WeightsAndBiases(project="p")
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **_: run))
    report = sae.WeightsAndBiases(project="p")
    record = {"step": 7, "run": 1, "site": "x", "l0": 3.0, "gradients": {"W_enc": 1.0}, "density": [1, 2]}
    report.record([record], Rates(10.0, 0.1, None))
    step, numbers = logged[0]
    assert step == 7 and json.dumps(numbers)
    assert numbers == {
        "run_1/l0": 3.0,
        "run_1/gradients/W_enc": 1.0,
        "speed/tokens_per_second": 10.0,
        "speed/input_wait": 0.1,
    }
    configs = {}
    run.config = types.SimpleNamespace(update=configs.update)
    report.begin([sae.short_run("s", 64, 9, l0_target=target) for target in (4, 8)])
    report.record([record], Rates(10.0, 0.1, None))
    name = "s/width_64/target_l0_8"
    assert logged[1][1][f"{name}/l0"] == 3.0 and configs[name]["l0_target"] == 8 and json.dumps(configs)


def test_names_of_tensorboard_runs_may_be_given(tmp_path):
    report = sae.TensorBoard(tmp_path, names=["mine"])
    runs = [sae.short_run("s", 64, 9, l0_target=target) for target in (4, 8)]
    with pytest.raises(ValueError, match="TensorBoard has 1 names for 2 runs"):
        report.begin(runs)
    report.begin(runs[:1])
    density = [1] * (1 + len(diagnostics.DENSITY_EDGES))
    report.record([{"step": 0, "run": 0, "l0": 3.0, "density": density}], Rates(10.0, 0.1, None))
    report.close()
    assert [file.name.startswith("events") for file in (tmp_path / "mine").iterdir()] == [True]
