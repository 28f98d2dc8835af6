"""The commands of `ddetr-np`, a file each."""
