// Memory in which ranks exchange on the stand-in, whether they are threads of one process or processes of one machine: a file that all of
// a group map, and whose name is the group's id. Ranks take turns by counters; whoever waits looks again after a short sleep.
//
// Two kinds of exchange. In one that all ranks take part in, each lays down what it gives and counts it as posted; when all have posted,
// each reads what it needs and counts the call as done; nobody lays down anew before all are done. A message has a channel from one rank
// to another: it is sent when it lies there, and taken when the other has read it. As late as a device may be: who sends waits until it
// is taken, though the library may keep small messages for the receiver.
#pragma once
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

namespace exchanges {
constexpr int MOST_RANKS = 8;
// Of one rank in one call; a file has holes where nothing was written.
constexpr size_t MOST_BYTES = 64 << 20;

struct Member {
    std::atomic<uint64_t> device;  // which nobody else in the group may have; 0: not joined yet
    std::atomic<uint64_t> posted, done;
    std::atomic<uint32_t> gone;  // 1: left in good order, 2: given up
    uint64_t asked[4];           // what the call is, to be the same on all ranks
};
struct Channel {
    std::atomic<uint64_t> wanted, sent, taken;
    uint64_t bytes;
};
struct Header {
    std::atomic<uint32_t> ranks, joined;
    Member members[MOST_RANKS];
    Channel channels[MOST_RANKS][MOST_RANKS];
};

class Memory {
   public:
    Memory(const std::string& id, int ranks) {
        path = (access("/dev/shm", W_OK) ? "/tmp/" : "/dev/shm/") + id;
        bytes = FIRST + MOST_BYTES * (ranks + ranks * ranks);
        const int file = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        void* mapped = file < 0 || ftruncate(file, (off_t)bytes) ? MAP_FAILED : mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
        if (file >= 0) close(file);
        start = mapped == MAP_FAILED ? nullptr : (unsigned char*)mapped;
        if (!start) return;
        uint32_t none = 0;
        is_fitting = header().ranks.compare_exchange_strong(none, (uint32_t)ranks) || none == (uint32_t)ranks;
        this->ranks = ranks;
    }
    ~Memory() {
        if (start) munmap(start, bytes);
    }
    Memory(const Memory&) = delete;
    // Whether it is there, and the other ranks say the same number of ranks.
    bool is_usable() const { return start && is_fitting; }
    Header& header() const { return *(Header*)start; }
    unsigned char* given(int rank) const { return start + FIRST + MOST_BYTES * rank; }
    unsigned char* message(int from, int to) const { return start + FIRST + MOST_BYTES * (ranks + from * ranks + to); }
    // Nobody else will open it: the file goes with its last owner.
    void forget_name() const { unlink(path.c_str()); }

   private:
    static constexpr size_t FIRST = (sizeof(Header) + 4095) / 4096 * 4096;
    std::string path;
    size_t bytes = 0;
    unsigned char* start = nullptr;
    bool is_fitting = false;
    int ranks = 0;
};
}  // namespace exchanges
