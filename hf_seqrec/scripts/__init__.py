"""The commands of `seqrec`, each also a script of its own."""
