"""Converters of public data sets: one file per owner, raw files in, the Hub layout out (`registry.CONVERTERS` lists them)."""

if __name__ == "dataset_scripts":
    raise ModuleNotFoundError(
        "`dataset_scripts` is installed as `hf_seqrec.dataset_scripts`: write `import hf_seqrec.dataset_scripts`."
    )
