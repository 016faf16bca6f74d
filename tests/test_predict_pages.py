"""`ecgfm predict --plot`: a page for each recording that is answered, and what goes wrong with one."""

import pytest
from inference_cases import recordings, write_model, write_store

from ecgfm_hf.cli.main import main


@pytest.fixture
def predict(tmp_path, tiny_config):
    store = write_store(tmp_path / "store", recordings((10, 3, 10)))
    model = write_model(tmp_path / "model", tiny_config(num_labels=2))

    def run(*arguments):
        return main(["predict", str(store), "--model", str(model), *map(str, arguments)])

    return run


def test_each_answered_recording_gets_a_page(predict, tmp_path, capsys):
    # One is shorter than a segment: it has neither answer nor page.
    assert predict("--plot", tmp_path / "pages", "--plot-format", "png", "--plot-saliency", "attention") == 1
    assert sorted(path.name for path in (tmp_path / "pages").iterdir()) == ["r0.png", "r2.png"]
    assert (tmp_path / "pages" / "r0.png").read_bytes().startswith(b"\x89PNG")
    assert "LABEL_0" in capsys.readouterr().out


def test_a_page_names_the_model_and_has_the_gain_that_was_asked_for(predict, tmp_path, monkeypatch):
    from ecgfm_hf import interpretation

    shown, plot = [], interpretation.plot_prediction
    monkeypatch.setattr(
        interpretation,
        "plot_prediction",
        lambda *given, **settings: shown.append(settings) or plot(*given, **settings),
    )
    predict("--plot", tmp_path / "pages", "--plot-gain", "5")
    assert {(one["mm_per_mv"], *one["facts"]) for one in shown} == {(5.0, "model model")}
    assert predict("--plot", tmp_path / "pages", "--plot-gain", "7") == 2


def test_labels_that_the_model_lacks_are_named_before_the_first_recording(predict, tmp_path, capsys):
    assert predict("--plot", tmp_path / "pages", "--plot-saliency", "LABEL_7") == 2
    assert "no label 'LABEL_7'" in capsys.readouterr().err
    assert not (tmp_path / "pages").exists()


def test_a_page_that_cannot_be_drawn_is_a_named_failure_and_the_answer_stays(predict, tmp_path, capsys):
    # Nothing was recorded at the hundredth second.
    assert predict("--plot", tmp_path / "pages", "--plot-start", 100) == 1
    printed = capsys.readouterr()
    assert "r0: no page: " in printed.err
    assert "LABEL_0" in printed.out


def test_pages_are_refused_with_parquet_output(predict, tmp_path, capsys):
    assert predict("--plot", tmp_path / "pages", "--output", tmp_path / "scores.parquet") == 2
    assert "--plot needs scores that are printed or written to a file other than .parquet" in capsys.readouterr().err
