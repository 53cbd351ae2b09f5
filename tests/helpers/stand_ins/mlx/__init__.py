"""What programs use of MLX 0.32."""
