"""A small model that groks in seconds: leak test, Fourier structure and progress measures."""

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from husai.errors import InputError
from husai.tasks import ModularDataset, ModularTaskConfig, modular_dataset
from husai.transformer import (
    CheckpointStore,
    TrainedTransformer,
    TransformerConfig,
    TransformerTrainingConfig,
    build_transformer,
    evaluate_transformer,
    fourier_structure,
    load_transformer,
    progress_measures,
    save_transformer,
    train_transformer,
)
from husai.transformer.fourier import frequency_planes

P = 31
MODEL = TransformerConfig(d_model=64, n_heads=4, d_mlp=128)
TRAINING = TransformerTrainingConfig(
    max_epochs=600,
    learning_rate=3e-3,
    weight_decay=2.0,
    patience=0,
    grokking_threshold=0.98,
    checkpoint_every=50,
)


@dataclasses.dataclass
class Grokked:
    dataset: ModularDataset
    run: TrainedTransformer
    store: CheckpointStore
    model: Any

    def predictions(self, tokens: Any) -> Any:
        with torch.no_grad():
            return self.model(tokens)[:, -1].argmax(-1)


def grok(token_format: Any, directory: Any) -> Any:
    dataset = modular_dataset(
        ModularTaskConfig(
            modulus=P,
            token_format=token_format,
            train_fraction=0.7,
            val_fraction=0,
            test_fraction=0.3,
        )
    )
    run = train_transformer(dataset, MODEL, TRAINING, checkpoint_dir=directory, progress=False)
    return Grokked(dataset, run, CheckpointStore(directory), run.build())


@pytest.fixture(scope="module")
def grokked(tmp_path_factory: Any) -> Any:
    return grok("compact", tmp_path_factory.mktemp("compact"))


@pytest.fixture(scope="module", params=["compact", "index_value", "alternating"])
def any_format(request: Any, grokked: Any, tmp_path_factory: Any) -> Any:
    if request.param == "compact":
        return grokked
    return grok(request.param, tmp_path_factory.mktemp(request.param))


def test_the_model_generalises_after_memorising_and_the_file_keeps_this(
    any_format: Any, tmp_path: Any
) -> None:
    summary = any_format.run.summary
    assert summary["epoch_train_99"] is not None
    assert summary["final_test_accuracy"] >= 0.98
    first = any_format.run.history["test_accuracy"].ge(0.98).idxmax()
    assert any_format.run.history["epoch"][first] > 1.5 * summary["epoch_train_99"]

    save_transformer(any_format.run, tmp_path / "model.safetensors")
    loaded = load_transformer(tmp_path / "model.safetensors")
    found = evaluate_transformer(loaded, any_format.dataset)
    assert found["val_accuracy"] is None
    for name in ("train_accuracy", "test_accuracy"):
        assert found[name] == summary[f"final_{name}"]
    for name in ("train_loss", "test_loss"):
        assert found[name] == pytest.approx(summary[f"final_{name}"], rel=1e-3)
    other = modular_dataset(ModularTaskConfig(modulus=P + 2))
    with pytest.raises(InputError, match=r"addition mod 33 .* trained on addition mod 31"):
        evaluate_transformer(loaded, other)


def follows(predict: Any, tokens: Any, position: Any, answers: Any) -> Any:
    """Return how often the prediction is the number planted at a position, and the true answer."""
    planted = torch.randint(0, P, answers.shape, generator=torch.Generator().manual_seed(0))
    planted = torch.where(planted == answers, (planted + 1) % P, planted)
    corrupted = tokens.clone()
    corrupted[:, position] = planted
    return float((predict(corrupted) == planted).double().mean())


def test_the_prediction_depends_on_no_token_but_a_and_b(any_format: Any) -> None:
    vocabulary = any_format.dataset.vocabulary
    tokens = torch.tensor(any_format.dataset.tokens())
    answers = torch.tensor(any_format.dataset.answers())
    fixed = set(range(vocabulary.n_ctx)) - {vocabulary.position_a, vocabulary.position_b}
    for position in fixed:
        # chance is 1/31; a model that copies scores 1 (below)
        assert follows(any_format.predictions, tokens, position, answers) < 0.15
    # and where the answer itself is planted, it is no more often right than with other numbers
    for position in fixed:
        corrupted = tokens.clone()
        corrupted[:, position] = answers
        right = float((any_format.predictions(corrupted) == answers).double().mean())
        others = [
            float(
                (
                    any_format.predictions(tokens.index_fill(1, torch.tensor([position]), number))
                    == answers
                )
                .double()
                .mean()
            )
            for number in range(0, P, 5)
        ]
        assert right < max(others) + 0.15
    # a and b do decide: another a, another answer
    moved = tokens.clone()
    moved[:, vocabulary.position_a] = (moved[:, vocabulary.position_a] + 1) % P
    right = (any_format.predictions(moved) == (answers + 1) % P).double().mean()
    assert float(right) > 0.98


def test_the_leak_test_catches_a_leak() -> None:
    # the mistake itself: the answer stands where the loss is read
    dataset = modular_dataset(ModularTaskConfig(modulus=P))
    tokens, answers = torch.tensor(dataset.tokens()), torch.tensor(dataset.answers())
    tokens[:, 2] = answers
    model = build_transformer(MODEL, P + 1, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(tokens)[:, -1], answers)
        torch.autograd.backward(loss)
        optimizer.step()

    def predict(corrupted: Any) -> Any:
        with torch.no_grad():
            return model(corrupted)[:, -1].argmax(-1)

    assert follows(predict, tokens, 2, answers) > 0.9


# --- progress measures ----------------------------------------------------------------------


def logits_of(grokked: Any, state: Any) -> Any:
    model = build_transformer(MODEL, P + 1, 3)
    model.load_state_dict(state)
    with torch.no_grad():
        return model(torch.tensor(grokked.dataset.tokens()))[:, -1, :P].double().numpy()


def cross_entropy(logits: Any, answers: Any) -> Any:
    return float(torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(answers)))


def test_losses_against_the_two_dimensional_fft(grokked: Any) -> None:
    """Restricted, excluded and trig loss by masking FFT coefficients of the hooked logits."""
    key = [3, 7, 10]
    epoch = grokked.store.epochs()[2]
    state = grokked.store.load(epoch)
    measures = progress_measures([(epoch, state)], grokked.dataset, MODEL, key=key)
    row = measures.iloc[0]
    answers = grokked.dataset.answers()
    logits = logits_of(grokked, state)
    grid = logits.reshape(P, P, P)

    # functions of a + b alone have their coefficients on the diagonal (k, k)
    spectrum = np.fft.fft2(grid, axes=(0, 1))
    mask = np.zeros((P, P, 1))
    for k in key:
        mask[k, k] = mask[P - k, P - k] = 1
    key_part = np.fft.ifft2(spectrum * mask, axes=(0, 1)).real.reshape(P * P, P)
    mean = logits.mean(0)
    assert row["restricted_loss"] == pytest.approx(
        cross_entropy(mean + key_part, answers), rel=1e-6
    )
    train = grokked.dataset.rows("train")
    excluded = cross_entropy((logits - key_part)[train], answers[train])
    assert row["excluded_loss"] == pytest.approx(excluded, rel=1e-6)

    # cos 2πk(a + b - c)/p: coefficients (k, k, -k), and of those the real part
    cube = np.fft.fftn(grid)
    kept = np.zeros_like(cube)
    for k in key:
        kept[k, k, P - k] = cube[k, k, P - k].real
        kept[P - k, P - k, k] = cube[P - k, P - k, k].real
    trig = np.fft.ifftn(kept).real.reshape(P * P, P)
    assert row["trig_loss"] == pytest.approx(cross_entropy(trig, answers), rel=1e-6)
    centred = logits - logits.mean(1, keepdims=True)
    centred -= centred.mean(0)
    share = (trig**2).sum() / (centred**2).sum()
    assert row["logits_explained"] == pytest.approx(share, rel=1e-6)


def test_without_all_frequencies_the_answer_is_unknown(grokked: Any) -> None:
    everything = list(range(1, (P - 1) // 2 + 1))
    state = grokked.run.state_dict
    row = progress_measures([(1, state)], grokked.dataset, MODEL, key=everything).iloc[0]
    # what is left of the logits without any wave of a + b cannot know a + b
    assert row["excluded_loss"] > 0.9 * np.log(P)
    structure = fourier_structure(state, grokked.dataset.vocabulary, MODEL, key=everything)
    assert structure.explained["W_E"] == pytest.approx(1)
    assert structure.explained["mlp_post"] > structure.explained["mlp_post_answer"]


def test_measures_tell_memorising_from_generalising(grokked: Any) -> None:
    measures = progress_measures(grokked.store, grokked.dataset)
    assert measures["epoch"].tolist() == grokked.store.epochs()
    first, last = measures.iloc[0], measures.iloc[-1]
    chance = np.log(P)
    # before training nothing is known; at the end the key waves alone solve the task and the
    # rest, on the very rows that were trained on, does not
    assert first["restricted_loss"] == pytest.approx(chance, rel=0.1)
    assert last["restricted_loss"] < 0.3 < 1.0 < last["excluded_loss"]
    assert last["trig_loss"] < 1.0
    for name in ("gini_W_E", "gini_W_L", "logits_explained", "mlp_post_explained"):
        assert last[name] > first[name] + 0.2, name
    assert last["resid_post_explained"] > 0.5
    norms = grokked.run.history.set_index("epoch")["weight_norm"]
    expected = norms.loc[measures["epoch"]].to_numpy() ** 2
    np.testing.assert_allclose(measures["sum_squared_weights"], expected, rtol=1e-6)


def test_structure_of_the_grokked_model(grokked: Any) -> None:
    vocabulary = grokked.dataset.vocabulary
    structure = fourier_structure(grokked.run.state_dict, vocabulary, MODEL)
    assert 1 <= len(structure.key_frequencies) <= 8
    assert structure.explained["W_L"] > 0.7
    W_E = grokked.run.state_dict["embed.weight"][:P].numpy()
    planes = frequency_planes(W_E, structure.key_frequencies, P)
    assert planes.shape == (len(structure.key_frequencies), 2, 64)
    tokens = torch.tensor(grokked.dataset.tokens())
    with torch.no_grad():
        _, cache = grokked.model.run_with_cache(tokens)
    values = cache["blocks.0.hook_resid_post"][:, -1].numpy()
    planes = frequency_planes(values, structure.key_frequencies, P)
    # the planes hold most of what the residual stream does over the pairs
    centred = values - values.mean(0)
    basis = np.linalg.svd(planes.reshape(-1, 64), full_matrices=False)[2]
    inside = ((centred @ basis.T) ** 2).sum() / (centred**2).sum()
    assert inside > structure.explained["resid_post"] > 0.5


def test_generic_shapes_are_measured_through_the_hooks() -> None:
    dataset = modular_dataset(ModularTaskConfig(modulus=7, token_format="alternating"))
    shape = TransformerConfig(d_model=16, n_heads=2, d_mlp=24, n_layers=2, normalization="LN")
    state = build_transformer(shape, dataset.vocabulary.d_vocab, 4).state_dict()
    measures = progress_measures([(0, state)], dataset, shape, key=[1, 2, 3])
    assert np.isfinite(measures.to_numpy(dtype=float)).all()
    # with every frequency kept the restricted logits are those of the answers' mean
    assert measures["mlp_post_explained"].iloc[0] < 1


def test_hooked_and_functional_measures_agree(grokked: Any, monkeypatch: Any) -> None:
    series = [(0, grokked.run.state_dict)]
    expected = progress_measures(series, grokked.dataset, MODEL, key=[2, 9])
    monkeypatch.setattr("husai.transformer.measures.has_functional_form", lambda config: False)
    found = progress_measures(series, grokked.dataset, MODEL, key=[2, 9])
    pd.testing.assert_frame_equal(found, expected, rtol=1e-4)


def test_measures_refuse_models_they_are_not_defined_for(grokked: Any) -> None:
    state = grokked.run.state_dict
    product = modular_dataset(ModularTaskConfig(modulus=9, operation="multiplication"))
    with pytest.raises(InputError, match=r"modulus = 9: .* odd prime"):
        progress_measures([(0, state)], product, MODEL)
    with pytest.raises(InputError, match="checkpoints: there is none to measure"):
        progress_measures([], grokked.dataset, MODEL)
    with pytest.raises(InputError, match="model_config: give it"):
        progress_measures([(0, state)], grokked.dataset)


def test_without_key_frequencies_the_measures_that_need_them_are_nan(grokked: Any) -> None:
    fresh = build_transformer(MODEL, P + 1, 3).state_dict()
    measures = progress_measures([(0, fresh)], grokked.dataset, MODEL)
    assert measures.attrs["key_frequencies"] == []
    empty = measures.columns[measures.isna().all()]
    assert set(empty) == {
        "restricted_loss",
        "excluded_loss",
        "trig_loss",
        "logits_explained",
        "mlp_post_explained",
        "resid_post_explained",
    }
    with pytest.raises(InputError, match="not grokked"):
        fourier_structure(fresh, grokked.dataset.vocabulary, MODEL)


@pytest.mark.parametrize("operation", ["subtraction", "multiplication"])
def test_other_operations_are_addition_in_their_own_order(operation: Any) -> None:
    """Relabel a random model's numbers by the group's order: every measure stays the same."""
    p = 11
    dataset = modular_dataset(ModularTaskConfig(modulus=p, operation=operation))
    shape = TransformerConfig(d_model=16, n_heads=2, d_mlp=24)
    state = build_transformer(shape, p + 1, 3).state_dict()
    row = progress_measures([(0, state)], dataset, shape, key=[1, 3]).iloc[0]
    # the same by hand: logits of all pairs, Fourier transformed over the answer's place
    model = build_transformer(shape, p + 1, 3)
    with torch.no_grad():
        logits = model(torch.tensor(dataset.tokens()))[:, -1].double().numpy()
    order = p - 1 if operation == "multiplication" else p
    powers = [pow(2, i, p) for i in range(order)]  # 2 is a primitive root of 11
    numbers = powers if operation == "multiplication" else list(range(p))
    means = np.zeros((order, order))
    for s, answer in enumerate(numbers):
        hits = (dataset.examples["answer"] == answer).to_numpy()
        means[s] = logits[hits][:, numbers].mean(0)
    spectrum = np.fft.fft(means, axis=0)
    keep = np.isin(np.arange(order), [0, 1, 3, order - 1, order - 3])
    restricted = np.fft.ifft(spectrum * keep[:, None], axis=0).real
    expected = cross_entropy(restricted, np.arange(order))
    assert row["restricted_loss"] == pytest.approx(expected, rel=1e-6)
    train = dataset.examples.iloc[dataset.rows("train")]
    inside = train[train["a"].isin(numbers) & train["b"].isin(numbers)]
    places = np.array([numbers.index(answer) for answer in inside["answer"]])
    key_part = restricted - means.mean(0)
    left = logits[inside.index][:, numbers] - key_part[places]
    assert row["excluded_loss"] == pytest.approx(cross_entropy(left, places), rel=1e-6)
