"""The demo federation of docker-compose.yml. Its CA signs whoever asks: nothing here is for data that matters."""
