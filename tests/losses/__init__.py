"""Tests of fastft.losses."""
