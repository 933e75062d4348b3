from hanmo.cli import main

main()
