// SPDX-License-Identifier: Apache-2.0
//
// A PKCS #11 module that is SoftHSM, but counts log-ins and fails when a test has written how
// into $FAULTY_DIR/fault.
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pkcs11go.h"

static CK_FUNCTION_LIST list;
static CK_FUNCTION_LIST_PTR real;

static void in_dir(char *path, size_t n, const char *name)
{
	snprintf(path, n, "%s/%s", getenv("FAULTY_DIR"), name);
}

// fault reads what is to fail; unless it is to fail always, it does so once.
static void fault(char *how, size_t n)
{
	char path[4096];
	ssize_t got;
	int fd;

	memset(how, 0, n);
	in_dir(path, sizeof(path), "fault");
	fd = open(path, O_RDWR);
	if (fd < 0)
		return;
	got = read(fd, how, n - 1);
	if (got > 7 && !strncmp(how, "always ", 7))
		memmove(how, how + 7, n - 7);
	else if (ftruncate(fd, 0))
		abort();
	close(fd);
}

static CK_RV login(CK_SESSION_HANDLE session, CK_USER_TYPE user, CK_UTF8CHAR_PTR pin, CK_ULONG n)
{
	char path[4096];
	int fd;

	in_dir(path, sizeof(path), "logins");
	fd = open(path, O_WRONLY | O_APPEND | O_CREAT, 0600);
	if (fd < 0 || write(fd, "1", 1) != 1)
		abort();
	close(fd);
	in_dir(path, sizeof(path), "refuse");
	if (!access(path, F_OK))
		return CKR_PIN_INCORRECT;
	in_dir(path, sizeof(path), "stuck");
	while (!access(path, F_OK))
		pause();
	return real->C_Login(session, user, pin, n);
}

static CK_RV sign(CK_SESSION_HANDLE session, CK_BYTE_PTR data, CK_ULONG n, CK_BYTE_PTR signature,
		  CK_ULONG_PTR length)
{
	CK_SESSION_INFO info;
	char how[64];
	CK_RV rv;

	if (!signature) // only asks for the length
		return real->C_Sign(session, data, n, signature, length);
	fault(how, sizeof(how));
	if (!strcmp(how, "crash"))
		abort();
	while (!strcmp(how, "hang"))
		pause();
	if (!strcmp(how, "device"))
		return CKR_DEVICE_ERROR;
	if (!strcmp(how, "forget") && !real->C_GetSessionInfo(session, &info))
		real->C_CloseAllSessions(info.slotID);
	if (!strcmp(how, "logout"))
		real->C_Logout(session);
	rv = real->C_Sign(session, data, n, signature, length);
	if (!strcmp(how, "wrong"))
		signature[*length - 1] ^= 1;
	return rv;
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR out)
{
	void *handle = dlopen("/usr/lib/softhsm/libsofthsm2.so", RTLD_NOW | RTLD_LOCAL);
	CK_C_GetFunctionList get =
		handle ? (CK_C_GetFunctionList)dlsym(handle, "C_GetFunctionList") : NULL;
	CK_RV rv = get ? get(&real) : CKR_GENERAL_ERROR;

	if (rv)
		return rv;
	list = *real;
	list.C_Login = login;
	list.C_Sign = sign;
	*out = &list;
	return CKR_OK;
}
