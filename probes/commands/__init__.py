"""The commands of this package, a file each: `mechvis probe`, `timeline`, `textspan`, `concepts`, `label`."""
