"""What is trained: image classification, language modelling, or a task of your own."""
