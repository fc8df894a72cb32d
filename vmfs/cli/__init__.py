"""`vmfsctl`: a thin face over the operations of this package. One command (or group), one module."""
