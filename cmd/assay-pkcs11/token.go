// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	p11 "github.com/miekg/pkcs11"

	"github.com/assay-id/assay/server/keys/pkcs11"
)

// maxSessions is how many requests a token serves at once, if it lets us.
const maxSessions = 8

// token is a token that we are logged in to, and log in to again when it forgets.
type token struct {
	ctx      *p11.Ctx
	conf     pkcs11.Open
	sessions int
	making   sync.Mutex // between "no such label" and the key of that label

	mu      sync.RWMutex // held for reading while a session is used
	login   *login
	refused error // the PIN; it is not tried again
}

// login is one log-in: what handles mean ends with it.
type login struct {
	slot uint
	idle chan p11.SessionHandle
	keys sync.Map // label → key
}

// key is a private key's handle, and how it signs.
type key struct {
	handle    p11.ObjectHandle
	mechanism uint
}

// open loads the module and logs in to the token.
func open(conf pkcs11.Open) (pkcs11.Token, error) {
	if _, err := os.Stat(conf.Module); err != nil {
		return nil, fmt.Errorf("module: %w", err)
	}
	ctx := p11.New(conf.Module)
	if ctx == nil {
		return nil, fmt.Errorf("%s can not be loaded as a PKCS #11 module: see `ldd %s` for libraries that are missing", conf.Module, conf.Module)
	}
	t := &token{ctx: ctx, conf: conf, sessions: maxSessions}
	err := ctx.Initialize() // with the system's locks
	if errors.Is(err, p11.Error(p11.CKR_CANT_LOCK)) {
		t.sessions = 1
		err = ctx.Initialize(p11.InitializeWithFlags(0))
	}
	if err != nil {
		return nil, fmt.Errorf("%s does not start: %w", conf.Module, err)
	}
	if t.login, err = t.logIn(); err != nil {
		return nil, errors.Join(err, ctx.Finalize())
	}
	return t, nil
}

// Sessions implements pkcs11.Token.
func (t *token) Sessions() int { return t.sessions }

// Close implements pkcs11.Token.
func (t *token) Close() error { return t.ctx.Finalize() }

// find finds the slot of the token.
func (t *token) find() (uint, p11.TokenInfo, error) {
	slots, err := t.ctx.GetSlotList(true)
	if err != nil {
		return 0, p11.TokenInfo{}, fmt.Errorf("ask for the tokens: %w", err)
	}
	var found []uint
	var info p11.TokenInfo
	var there []string
	for _, slot := range slots {
		i, err := t.ctx.GetTokenInfo(slot)
		if err != nil {
			continue // taken out just now, or not initialised
		}
		label := strings.TrimRight(i.Label, " \x00")
		there = append(there, fmt.Sprintf("%q in slot %d", label, slot))
		if (t.conf.Slot == nil || uint(*t.conf.Slot) == slot) && (t.conf.TokenLabel == "" || t.conf.TokenLabel == label) {
			found, info = append(found, slot), i
		}
	}
	if len(found) != 1 {
		return 0, info, fmt.Errorf("%d tokens are as token_label and slot say, not one; there are: %s", len(found), strings.Join(there, ", "))
	}
	return found[0], info, nil
}

// logIn logs in, trying the PIN once.
func (t *token) logIn() (*login, error) {
	if t.refused != nil {
		return nil, t.refused
	}
	slot, info, err := t.find()
	if err != nil {
		return nil, err
	}
	if info.Flags&(p11.CKF_USER_PIN_FINAL_TRY|p11.CKF_USER_PIN_LOCKED) != 0 {
		return nil, &pkcs11.Error{Kind: pkcs11.Failed, Text: fmt.Sprintf("the PIN of token %q is locked, or its last try would be ours: log in by hand once (pkcs11-tool --login --list-objects) or have it unlocked", strings.TrimSpace(info.Label))}
	}
	if most := info.MaxRwSessionCount; most > 0 && most < maxSessions { // 0 and ^0: no limit, unknown
		t.sessions = int(most)
	}
	l := &login{slot: slot, idle: make(chan p11.SessionHandle, maxSessions)}
	s, err := t.ctx.OpenSession(slot, p11.CKF_SERIAL_SESSION|p11.CKF_RW_SESSION)
	if err != nil {
		return nil, fmt.Errorf("open a session: %w", err)
	}
	err = t.ctx.Login(s, p11.CKU_USER, string(t.conf.PIN))
	switch {
	case err == nil, errors.Is(err, p11.Error(p11.CKR_USER_ALREADY_LOGGED_IN)):
		l.idle <- s
		return l, nil
	case answered(err, refusals):
		t.refused = &pkcs11.Error{Kind: pkcs11.PIN, Text: fmt.Sprintf("the token refuses the PIN, which is not tried again until pin_path's file changes: %v", err)}
		err = t.refused
	default:
		err = fmt.Errorf("log in: %w", err)
	}
	return nil, errors.Join(err, t.ctx.CloseSession(s))
}

// refusals are answers after which a further try would be a step towards a locked token.
var refusals = []p11.Error{
	p11.CKR_PIN_INCORRECT, p11.CKR_PIN_INVALID, p11.CKR_PIN_LEN_RANGE, p11.CKR_PIN_EXPIRED, p11.CKR_PIN_LOCKED, p11.CKR_USER_PIN_NOT_INITIALIZED,
}

// forgotten are answers of a token that was taken out, or restarted, or that lost our log-in or the object
// meanwhile: what handles meant is gone, and we log in again.
var forgotten = []p11.Error{
	p11.CKR_SESSION_HANDLE_INVALID, p11.CKR_SESSION_CLOSED, p11.CKR_TOKEN_NOT_PRESENT, p11.CKR_TOKEN_NOT_RECOGNIZED, p11.CKR_DEVICE_REMOVED,
	p11.CKR_USER_NOT_LOGGED_IN, p11.CKR_OBJECT_HANDLE_INVALID, p11.CKR_KEY_HANDLE_INVALID,
}

// broken are answers of modules that go on to answer so until they are loaded anew.
var broken = []p11.Error{p11.CKR_GENERAL_ERROR, p11.CKR_DEVICE_ERROR, p11.CKR_CRYPTOKI_NOT_INITIALIZED}

func answered(err error, by []p11.Error) bool {
	var rv p11.Error
	return errors.As(err, &rv) && slices.Contains(by, rv)
}

// with does something in a session, and once more if the token has forgotten us.
func (t *token) with(do func(l *login, s p11.SessionHandle) error) error {
	l, err := t.once(do)
	if answered(err, forgotten) {
		if err = t.again(l); err == nil {
			_, err = t.once(do)
		} else if t.pinRefused() == nil { // many modules find a token that came back only if they start anew
			return &pkcs11.Error{Kind: pkcs11.Broken, Text: err.Error()}
		}
	}
	if answered(err, broken) {
		return &pkcs11.Error{Kind: pkcs11.Broken, Text: err.Error()}
	}
	return err
}

func (t *token) once(do func(l *login, s p11.SessionHandle) error) (l *login, err error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	l = t.login
	var s p11.SessionHandle
	select {
	case s = <-l.idle:
	default:
		if s, err = t.ctx.OpenSession(l.slot, p11.CKF_SERIAL_SESSION|p11.CKF_RW_SESSION); err != nil {
			return l, fmt.Errorf("open a session: %w", err)
		}
	}
	if err := do(l, s); err != nil {
		// An operation may be open in it. The error above is what counts.
		_ = t.ctx.CloseSession(s)
		return l, err
	}
	select {
	case l.idle <- s:
	default:
		_ = t.ctx.CloseSession(s)
	}
	return l, nil
}

// pinRefused is the token's refusal of the PIN, if there was one.
func (t *token) pinRefused() error {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.refused
}

// again logs in again, unless another request has done so since.
func (t *token) again(old *login) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.login != old {
		return nil
	}
	_ = t.ctx.CloseAllSessions(old.slot) // there may be none
	l, err := t.logIn()
	if err == nil {
		t.login = l
	}
	return err
}
