if __name__ == "dataset_scripts":
    raise ModuleNotFoundError("`dataset_scripts` is installed as `hf_seqrec.dataset_scripts`: write `import hf_seqrec.dataset_scripts`.")
