"""Verbs of curation: embed, prune."""

from pathlib import Path
from typing import Annotated

import typer

from rayface.cli.common import Address, Debug, Imports, Json, Overrides, Seed, Verbose, app, show_result, tell
from rayface.config import parse_bytes

Data = Annotated[str, typer.Option(help="Dataset directory, or several as one: '[A,B]', as data.train.")]


@app.command()
def embed(
    model: Annotated[str, typer.Option(help="Run directory, model.safetensors, .onnx, published .pt with --backbone.")],
    data: Data,
    out: Annotated[str, typer.Option(help="Folder for the parquet files; run again to go on in it.")],
    overrides: Overrides = None,
    backbone: Annotated[str | None, typer.Option(help="Of a published checkpoint, for example r50.")] = None,
    flip: Annotated[bool, typer.Option(help="Add the embedding of the mirror image.")] = True,
    precision: Annotated[str, typer.Option(help="Of the model's products: fp32 or bf16.")] = "fp32",
    dtype: Annotated[str, typer.Option(help="As stored: fp16 or fp32.")] = "fp16",
    workers: Annotated[int | None, typer.Option(min=1, help="Actors; default: one a GPU, else one a CPU.")] = None,
    imports: Imports = None,
    json: Json = False,
    address: Address = None,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Embed a dataset with a model, as a Ray Data job: one parquet file of key, label, embedding for each shard."""
    from rayface.config import load, parse_paths
    from rayface.embedding.embed import EmbedSettings
    from rayface.embedding.embed import embed as embed_data

    settings = EmbedSettings(
        model=model,
        backbone=backbone,
        flip=flip,
        precision=precision,  # type: ignore[arg-type]  # checked there
        dtype=dtype,  # type: ignore[arg-type]
    )
    result = embed_data(
        settings,
        parse_paths("--data", data),
        out,
        config=load(overrides=overrides or []),
        workers=workers,
        address=address,
        debug=debug,
    )
    for fault in result["faults"]:
        tell(fault)
    shown = ("model", "data", "num_rows", "num_classes", "embedding_size", "flip", "parts_skipped", "seconds")
    facts = {name: result[name] for name in shown} | {"faults": len(result["faults"])}
    show_result(f"embedded into {out}", {"out": out, **result} if json else facts, json)


@app.command()
def prune(
    out: Annotated[str, typer.Option(help="Folder for the core set; run again to go on in it.")],
    overrides: Overrides = None,
    embeddings: Annotated[str | None, typer.Option(help="Folder of parquet files, as `rayface embed` writes.")] = None,
    data: Annotated[str | None, typer.Option(help="What was embedded, as --data of embed: writes a dataset.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Drop faces with a higher cosine than this.")] = None,
    keep: Annotated[float | None, typer.Option(help="Share of the faces to keep; its threshold is searched.")] = None,
    method: Annotated[str, typer.Option(help="face_nms, random, herding, or diffprob with --head.")] = "face_nms",
    head: Annotated[str | None, typer.Option(help="Run whose model embedded the faces, for diffprob.")] = None,
    min_images: Annotated[int, typer.Option(help="Kept of every identity that has so many.")] = 1,
    global_weight: Annotated[float, typer.Option(help="Of the sparsity among all faces in the score.")] = 0.0,
    proxy_fraction: Annotated[
        float | None, typer.Option(help="Instead of --embeddings: train a proxy on this share of the identities.")
    ] = None,
    proxy_preset: Annotated[str, typer.Option(help="Recipe of the proxy; KEY=VALUE change it.")] = "mini",
    baseline: Annotated[
        list[str] | None, typer.Option(help="To compare with, beside random: herding, diffprob.")
    ] = None,
    seed: Seed = 0,
    outliers: Annotated[float | None, typer.Option(help="Look for faces below this cosine to their mean.")] = None,
    duplicates: Annotated[float | None, typer.Option(help="Look for identities above this cosine.")] = None,
    conflicts: Annotated[float | None, typer.Option(help="Look for faces of two identities above this cosine.")] = None,
    equal_bytes: Annotated[bool, typer.Option("--bytes", help="Look for equal files; reads those of --data.")] = False,
    exclude: Annotated[str | None, typer.Option(help="Embeddings of a test set; drops its identities.")] = None,
    above: Annotated[float | None, typer.Option(help="Cosine above which an identity is one of --exclude.")] = None,
    drop: Annotated[
        list[str] | None, typer.Option(help="What to drop of what is found: outliers, conflicts, bytes (equal files).")
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Give duplicate identities one label.")] = False,
    block_size: Annotated[str, typer.Option(help="Embeddings that a task holds at a time.")] = "64MB",
    write_shards: Annotated[
        bool, typer.Option("--write-shards", help="Copy what is kept into shards; else refer to those of --data.")
    ] = False,
    imports: Imports = None,
    json: Json = False,
    address: Address = None,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Choose a core set of the faces that were embedded, as a Ray Data job."""
    from rayface.config import load, parse_paths
    from rayface.curate.clean.clean import CleanOptions
    from rayface.curate.prune.core_set import build
    from rayface.curate.prune.proxy import ProxySettings, prune_by_proxy
    from rayface.curate.prune.settings import PruneSettings, check_head

    settings = PruneSettings(
        method=method,
        threshold=threshold,
        keep=keep,
        min_images=min_images,
        global_weight=global_weight,
        seed=seed,
        baselines=tuple(baseline or ()),
        head=str(Path(head).absolute()) if head else None,
        clean=CleanOptions(
            outliers=outliers,
            duplicates=duplicates,
            conflicts=conflicts,
            bytes=equal_bytes or "bytes" in (drop or ()),
            test=above,
            drop=(*(drop or ()), *(("test",) if exclude and above is not None else ())),
            merge=merge,
        ),
        block_size=parse_bytes(block_size),
    )
    if (embeddings is None) == (proxy_fraction is None):
        raise ValueError(
            "--embeddings, --proxy-fraction: must be one of the two: what `rayface embed` wrote, or a proxy to train"
        )
    check_head(head, method, baseline or ())
    paths = parse_paths("--data", data) if data else None
    if embeddings is not None:
        result = build(
            settings,
            embeddings,
            out,
            data=paths,
            exclude=exclude,
            write_shards=write_shards,
            config=load(overrides=overrides or []),
            address=address,
            debug=debug,
        )
    else:
        if paths is None:
            raise ValueError("--data: is not given: must be a dataset directory, what the proxy is to embed")
        assert proxy_fraction is not None
        result = prune_by_proxy(
            settings,
            ProxySettings(fraction=proxy_fraction, config=load(proxy_preset, overrides=overrides or []), seed=seed),
            paths,
            out,
            exclude=exclude,
            write_shards=write_shards,
            address=address,
            debug=debug,
        )
    facts = {name: value for name, value in result.items() if name not in ("config", "created_by")}
    show_result(f"core set in {out}", {"out": out, **result} if json else facts, json)
