import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.MappedByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.channels.FileLock;
import java.nio.channels.OverlappingFileLockException;
import java.nio.file.*;
import java.nio.file.attribute.*;
import java.util.ArrayList;
import java.util.List;
import static java.nio.file.StandardOpenOption.*;

/** Called with a folder and where this source is; calls itself in processes of its own with "count FILE". */
public class Channels {
    static final int PROCESSES = 3, ROUNDS = 300;

    static void check(boolean right, String what) {
        if (!right) throw new AssertionError(what);
    }

    /** Adds to a number in mapped memory, under a lock. */
    static void count(Path file) throws IOException {
        try (FileChannel channel = FileChannel.open(file, READ, WRITE)) {
            MappedByteBuffer memory = channel.map(FileChannel.MapMode.READ_WRITE, 0, 4096);
            for (int round = 0; round < ROUNDS; round++) {
                try (FileLock lock = channel.lock(8, 8, false)) {
                    check(lock.isValid(), "the lock");
                    memory.putLong(8, memory.getLong(8) + 1);
                }
            }
            memory.force();
        }
    }

    static void locks(Path folder, String source) throws Exception {
        Path file = folder.resolve("counter");
        Files.write(file, new byte[4096]);
        List<Process> processes = new ArrayList<>();
        String launcher = Path.of(System.getProperty("java.home"), "bin", "java").toString();
        for (int i = 0; i < PROCESSES; i++)
            processes.add(new ProcessBuilder(launcher, "-XX:+UseSerialGC", source, "count", file.toString()).inheritIO().start());
        for (Process process : processes) check(process.waitFor() == 0, "a process that counts failed");
        long total = ByteBuffer.wrap(Files.readAllBytes(file)).getLong(8);
        check(total == PROCESSES * ROUNDS, total + " instead of " + PROCESSES * ROUNDS);
        try (FileChannel channel = FileChannel.open(file, READ, WRITE)) {
            FileLock held = channel.lock(0, 10, false);
            try {
                channel.lock(9, 5, false);
                throw new AssertionError("two locks overlap");
            } catch (OverlappingFileLockException expected) {
                held.release();
            }
        }
    }

    static void channels(Path folder) throws IOException {
        Path file = folder.resolve("data");
        try (FileChannel channel = FileChannel.open(file, CREATE_NEW, READ, WRITE)) {
            ByteBuffer[] parts = { ByteBuffer.wrap(new byte[5000]), ByteBuffer.wrap("gathered".getBytes()) };
            while (parts[1].hasRemaining()) channel.write(parts);
            channel.write(ByteBuffer.wrap("far".getBytes()), 5L << 30);
            channel.force(true);
            check(channel.size() == (5L << 30) + 3, "the size");
            ByteBuffer back = ByteBuffer.allocate(8);
            channel.read(back, 5000);
            check(new String(back.array()).equals("gathered"), "what was gathered");
            try (FileChannel copy = FileChannel.open(folder.resolve("copy"), CREATE_NEW, WRITE)) {
                check(channel.transferTo(0, 5008, copy) == 5008, "transferTo");
            }
            channel.truncate(5008);
        }
        check(Files.mismatch(file, folder.resolve("copy")) == -1, "the copy");
        Files.move(folder.resolve("copy"), file, StandardCopyOption.ATOMIC_MOVE);
        check(!Files.exists(folder.resolve("copy")), "the old name");
        try (FileChannel channel = FileChannel.open(file, WRITE, DSYNC, APPEND)) {
            channel.write(ByteBuffer.wrap("end".getBytes()));
        }
        check(Files.size(file) == 5011, "an appended file");
    }

    static void attributes(Path folder) throws IOException {
        Path file = folder.resolve("pièce n° 1.odt");
        Files.createFile(file, PosixFilePermissions.asFileAttribute(PosixFilePermissions.fromString("rw-r-----")));
        FileTime time = FileTime.from(java.time.Instant.parse("2001-02-03T04:05:06.123456789Z"));
        Files.setLastModifiedTime(file, time);
        check(Files.getLastModifiedTime(file).toMillis() == time.toMillis(), "the time");
        UserDefinedFileAttributeView view = Files.getFileAttributeView(file, UserDefinedFileAttributeView.class);
        view.write("origin", ByteBuffer.wrap("greffe".getBytes()));
        check(view.list().equals(List.of("origin")) && view.size("origin") == 6, "an attribute");
        Path link = Files.createSymbolicLink(folder.resolve("link"), file.getFileName());
        Path second = Files.createLink(folder.resolve("second"), file);
        check(Files.isSameFile(link, second) && (int) Files.getAttribute(file, "unix:nlink") == 2, "links");
        check(Files.getFileStore(file).type().startsWith("fuse"), Files.getFileStore(file).type());
        check(Files.getFileStore(file).getUsableSpace() > 0, "room");
    }

    /** What an application that waits in a folder for documents does. */
    static void watch(Path folder) throws Exception {
        Path inbox = Files.createDirectory(folder.resolve("inbox"));
        try (WatchService service = folder.getFileSystem().newWatchService()) {
            inbox.register(service, StandardWatchEventKinds.ENTRY_CREATE);
            Files.writeString(inbox.resolve("document"), "x");
            WatchKey key = service.poll(20, java.util.concurrent.TimeUnit.SECONDS);
            check(key != null && key.pollEvents().get(0).context().toString().equals("document"), "an event");
        }
    }

    public static void main(String[] arguments) throws Exception {
        if (arguments[0].equals("count")) {
            count(Path.of(arguments[1]));
            return;
        }
        Path folder = Path.of(arguments[0]);
        locks(folder, arguments[1]);
        channels(folder);
        attributes(folder);
        watch(folder);
        System.out.println("channels, mapped buffers, locks, moves, attributes, events");
    }
}
