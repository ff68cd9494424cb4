# shellcheck shell=bash
# Functions that the launchers share.

dry_run=no

die() { # print what is wrong, and exit
  echo "$1" >&2
  exit 2
}

quoted() { # print words as they would be typed in a shell
  local word words=()
  for word; do
    [[ $word =~ ^[A-Za-z0-9_./:=,+@%-]+$ ]] || word=${word@Q}
    words+=("$word")
  done
  echo "${words[*]}"
}

run() { # print a command, and run it unless it is only asked for
  quoted "$@"
  [ "$dry_run" = yes ] || "$@"
}

code_files() { # print a tar file of the files that git tracks or would add, without environments and outputs
  git ls-files -z --cached --others --exclude-standard | tar --create --null --ignore-failed-read --files-from=-
}
