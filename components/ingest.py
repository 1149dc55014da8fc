"""Step 1: candles from a file, an exchange or the simulator, checked and prepared once."""

from kfp import dsl

from components.artifacts import metadata, place
from components.image import BASE_IMAGE, IMAGE


@dsl.component(base_image=BASE_IMAGE, target_image=IMAGE)
def ingest(
    data: str,
    symbol: str,
    data_version: str,
    sizing: str,
    candles: dsl.Output[dsl.Dataset],
    features: dsl.Output[dsl.Dataset],
) -> None:
    """Load and check candles, then run features, signals and the sizing chain over them.

    Args:
        data: Path or gs:// URI of a CSV or Parquet file, exchange:SYMBOL, or synthetic:NAME.
        symbol: Name of the market, for example BTC-USDT.
        data_version: What the data must be: a file's sha256, or the end of an exchange's window; newest for what
            there is now, where this step is not cached.
        sizing: Text of a YAML file like config/sizing.yaml; the defaults where it is empty.
    """
    from layer3 import workflow
    from layer3.market.sources import version_of

    # Pinned as soon as it runs, so that what is recorded says which data these were.
    version = version_of(data) if data_version == "newest" else data_version
    info = workflow.ingest(data, symbol, version, sizing, place(candles), place(features))
    candles.metadata.update(metadata(info))
    features.metadata.update(metadata(info))
    kind = "SYNTHETIC " if info["synthetic"] else ""
    period = f"{info['start'][:10]} to {info['end'][:10]}"
    print(f"{info['rows']:,} {kind}candles of {symbol}, {period}; signals: {info['signals']}")
