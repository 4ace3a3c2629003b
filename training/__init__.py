"""The companion module: training simulators and judges. Run from a checkout, `python -m training.<script> --help`."""
