"""What others see: metrics, spans, log events, and the page that lists them."""
