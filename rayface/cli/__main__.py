from rayface.cli import main

main()
