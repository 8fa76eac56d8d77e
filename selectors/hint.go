// SPDX-License-Identifier: Apache-2.0

package selectors

// deriveHint emits `hint`: what a process says of itself. It is no evidence. It tells apart
// programs of one interpreter (python app.py, java -jar app.jar, node app.js) against mistakes,
// not against attackers, so an entry that names it names evidence beside it: who started the
// process (parent, systemd), as whom (unix), from which interpreter (unix:sha256).
//
//	selector                            example                          from                                      what a liar does with it
//	hint:argument-file:sha256:<digest>  hint:argument-file:sha256:9f86…  the first argument that names a regular   starts the same interpreter with that file as an
//	                                                                     file, from the process's own command      argument and other code in its environment, or
//	                                                                     line, read when it asks (T1, T2; of       writes the command line in its own memory: whoever
//	                                                                     processes in the host's user namespace)   meets the entry's other selectors can claim it
func deriveHint(f *Facts, emit func(family, value string)) {
	if d := f.ArgumentFile.SHA256; !d.IsZero() {
		emit("hint", "argument-file:sha256:"+d.String())
	}
}
