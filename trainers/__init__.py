if __name__ == "trainers":
    raise ModuleNotFoundError("`trainers` is installed as `hf_seqrec.trainers`: write `import hf_seqrec.trainers`.")
