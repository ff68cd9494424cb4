# shellcheck shell=bash
# What the launchers share.

dry_run=no

die() { # say what is wrong, and end
  echo "$1" >&2
  exit 2
}

quoted() { # words as one would type them
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

code_files() { # a tar file of what git knows or would know: no environments, no outputs
  git ls-files -z --cached --others --exclude-standard | tar --create --null --ignore-failed-read --files-from=-
}
