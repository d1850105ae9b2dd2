"""The tables of ``benchmarks/README.md`` are those that its command makes of the JSON beside it."""

from benchmarks.table import HERE, table


def test_every_measurement_stands_in_the_readme():
    text = (HERE / "README.md").read_text()
    files = sorted(HERE.glob("*.json"))
    assert files
    for file in files:
        assert table(file) in text, f"{file.name}: run python -m benchmarks.table"
    assert text.count("| what | side |") == len(files)  # And nothing else does.
